"""The plot along the layers: where its points lie."""

import math
import re

from refq.models.profile import Series, profile

INF = math.inf


def circles(html, kind):
    found = re.findall(f'<circle class="{kind}" cx="([^"]+)" cy="([^"]+)"', html)
    return [(float(x), float(y)) for x, y in found]


def test_points_by_hand():
    """0 to 30 dB on 200 units; 4 places on 1100 - 44 - 12 = 1044 units: a pitch of 261."""
    kept = Series("line", "kept", [0.0, 15.0, 30.0, None], ["bad", "poor", "good", ""])
    direct = Series("ring", "direct", [None, 7.5, 0.0, 0.0])
    html = profile(list("abcd"), [kept, direct], ["told"] * 4, "dB", 1)
    assert circles(html, "bad") == [(174.5, 210.0)] and circles(html, "poor") == [(435.5, 110.0)]
    assert circles(html, "good") == [(696.5, 10.0)] and len(circles(html, "ring")) == 3
    assert circles(html, "ring")[0] == (435.5, 160.0)
    assert 'd="M174.5 210.0L435.5 110.0L696.5 10.0"' in html and html.count("<title>told</title>") == 4
    assert re.search(r'class="mark" x="443.5" y="126.0" text-anchor="start">b<', html)
    assert ">0 dB</text>" in html and ">30</text>" in html and "exact" not in html
    assert html.index("ring") < html.index('class="line"')          # the line is drawn above the rings
    assert 'class="line"></i>kept' in html and 'class="ring"></i>direct' in html


def test_what_is_not_finite_stands_at_the_edges():
    html = profile(list("abc"), [Series("line", "kept", [INF, -INF, math.nan]),
                                 Series("dashed", "float", [INF, 12.0, -500.0])], [""] * 3, "dB")
    ys = [y for _, y in circles(html, "fair")]
    assert ys == [10.0, 230.0, 230.0] and ">exact</text>" in html
    assert ">-20 dB</text>" in html and "nan" not in html and "inf" not in html


def test_gaps_break_the_line():
    html = profile(list("abcd"), [Series("dashed", "x", [1.0, None, 2.0, 3.0])], [""] * 4, "dB")
    assert len(re.findall("M", re.search(r'd="([^"]+)"', html)[1])) == 2


def test_one_place_and_many():
    alone = profile(["a"], [Series("line", "x", [5.0])], [""], "dB", 0)
    assert len(circles(alone, "fair")) == 1
    many = profile([f"layer{i}" for i in range(200)], [Series("line", "x", [1.0] * 200)], [""] * 200, "dB")
    assert ">200</text>" in many and ">1</text>" in many and "layer7" not in many and "rotate" not in many
    assert many.count('text-anchor="middle"') == 21
    slanting = profile(["n" * 60, "b"], [Series("line", "x", [1.0, 2.0])], [""] * 2, "dB")
    assert "nnnnnnnn…nnnnnnnnnnn<" in slanting and slanting.count("rotate(-40)") == 2


def test_nothing_finite():
    html = profile(["a", "b"], [Series("line", "x", [INF, INF])], [""] * 2, "dB", 0)
    assert [y for _, y in circles(html, "fair")] == [10.0, 10.0]
