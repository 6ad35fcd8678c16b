"""Building blocks of refq's HTML pages: one self-contained file, no scripts, no network, light and dark.

Every function returns HTML or SVG as a string; text arguments are escaped, `html` arguments are not.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

GRADES = ("good", "fair", "poor", "bad")   # colours of bars and cells, best first

STYLE = """
:root { --font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif }
:root { color-scheme: light dark; --paper:#f6f7f9; --card:#ffffff; --ink:#1b2430; --soft:#667085;
  --line:#e3e7ee;
  --good:#2f9e6e; --fair:#4b7bec; --poor:#e69a1c; --bad:#d64545; --weight:#b9c4d6; --accent:#3b5bdb;
  --track:#eceff4; }
@media (prefers-color-scheme: dark) { :root { --paper:#12161c; --card:#1b212a; --ink:#e6eaf0; --soft:#98a3b3;
  --line:#2b333f; --good:#3fbf88; --fair:#6c9bff; --poor:#f0b040; --bad:#ff6b6b; --weight:#46546a;
  --accent:#8fa8ff;
  --track:#262e39; } }
* { box-sizing:border-box } html { -webkit-text-size-adjust:100% }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.5 var(--font);
  font-variant-numeric:tabular-nums }
main { max-width:1180px; margin:0 auto; padding:32px 24px 64px }
header h1 { margin:0 0 4px; font-size:26px; letter-spacing:-.01em } header p { margin:0; color:var(--soft) }
.headline { margin:20px 0 0; padding:14px 18px; border-left:4px solid var(--accent); background:var(--card);
  border-radius:0 10px 10px 0; font-size:16px }
p.headline { color:var(--ink) } .headline.bad { border-color:var(--bad) } .headline.poor {
  border-color:var(--poor) }
.headline.good { border-color:var(--good) } .headline.fair { border-color:var(--fair) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(168px,1fr)); gap:12px; margin:20px 0 }
.tile, section { background:var(--card); border:1px solid var(--line); border-radius:12px }
.tile { padding:14px 16px } .tile b { display:block; font-size:24px; line-height:1.25; font-weight:650 }
.tile span { color:var(--soft); font-size:13px } .tile small { display:block; overflow-wrap:anywhere;
  color:var(--soft); font-size:12.5px }
section { padding:18px 20px 20px; margin:16px 0 } section h2 { margin:0 0 4px; font-size:18px }
section > p { margin:0 0 12px; color:var(--soft); max-width:80ch }
.scroll { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:13.5px }
th { text-align:left; color:var(--soft); font-weight:600; white-space:nowrap } th, td { padding:6px 10px 6px
  0;
  border-bottom:1px solid var(--line); vertical-align:top } td { white-space:nowrap } tr:last-child td {
  border-bottom:0 }
td.n, th.n { text-align:right; white-space:nowrap } td.soft, .soft { color:var(--soft) }
td.name, td.wrap { white-space:normal; overflow-wrap:anywhere; min-width:150px } td.name { font-weight:600 }
td.last { white-space:normal; overflow-wrap:anywhere; min-width:140px; color:var(--soft); font-size:12.5px }
  td.n b { font-weight:650
  } .pill { display:inline-block; padding:0 8px; border-radius:99px; font-size:12px;
  background:var(--track); white-space:nowrap }
a { color:var(--accent) } .good { color:var(--good) } .fair { color:var(--fair) } .poor { color:var(--poor) }
.bad { color:var(--bad) }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(260px,1fr)); gap:14px }
figure { margin:0 } figcaption { font-size:12.5px; color:var(--soft); display:flex;
  justify-content:space-between; gap:8px }
figcaption b { color:var(--ink); font-weight:600; overflow:hidden; text-overflow:ellipsis; white-space:nowrap
  }
svg { display:block; width:100%; height:auto; font:12px var(--font);
  font-variant-numeric:tabular-nums }
svg.plot { min-width:680px }
svg text { fill:var(--ink) } svg .soft { fill:var(--soft) } svg .track { fill:var(--track) }
svg .good { fill:var(--good) } svg .fair { fill:var(--fair) } svg .poor { fill:var(--poor) } svg .bad {
  fill:var(--bad) }
svg .weight { fill:var(--weight) } svg .quant { fill:none; stroke:var(--accent); stroke-width:1.4 }
svg .axis { stroke:var(--line) }
svg .line { fill:none; stroke:var(--accent); stroke-width:1.6 } svg .mark { font-weight:650 }
svg .dashed { fill:none; stroke:var(--soft); stroke-width:1.2; stroke-dasharray:2 3 }
svg .ring { fill:var(--card); stroke:var(--soft); stroke-width:1.3 }
svg circle, svg path { pointer-events:none } svg .place { fill:transparent }
svg .place:hover { fill:var(--track); fill-opacity:.6 }
ul { margin:0; padding-left:20px } dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 16px;
  margin:0 }
dt { color:var(--soft) } dd { margin:0 } footer { color:var(--soft); font-size:12.5px; margin-top:24px }
section > p.key { margin:10px 0 0; font-size:13px; max-width:none }
.key span { white-space:nowrap; margin-right:16px }
.key i { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:6px;
  vertical-align:-1px }
.key .weight { background:var(--weight) } .key .good { background:var(--good) }
.key .fair { background:var(--fair) } .key .poor { background:var(--poor) }
.key .bad { background:var(--bad) }
.key .ring { border:1.5px solid var(--soft); border-radius:99px; background:none }
.key .line, .key .dashed { width:20px; height:0; border-radius:0; vertical-align:3px;
  border-top:2px solid var(--accent) }
.key .dashed { border-top:2px dotted var(--soft) }
.wide { min-width:250px } td.name small { display:block; font-weight:400; color:var(--soft); font-size:12px }
summary { color:var(--soft); font-size:13px; cursor:pointer; margin:6px 0 }
@media print { body { background:#fff } section, .tile { break-inside:avoid } }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: `value` gives its length, `text` stands beside it, `grade` is one of GRADES. base: how much of
    the value, from the start, is grey."""

    label: str
    value: float
    text: str
    grade: str = "fair"
    base: float = 0.0


@dataclass(frozen=True)
class Histogram:
    """Counts of weights before and after quantisation in equal bins over [low, high]."""

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]


def histogram(before: np.ndarray, after: np.ndarray, bins: int = 61) -> Histogram:
    """Counts of two arrays over a range about zero that holds both. An odd number of bins centres zero."""
    top = max((float(max(values.max(), -values.min())) for values in (before, after) if values.size),
              default=0.0) or 1.0
    return Histogram(-top, top, _counts(before, bins, top), _counts(after, bins, top))


def _counts(values: np.ndarray, bins: int, top: float) -> tuple[int, ...]:
    flat, counts = values.reshape(-1), np.zeros(bins, np.int64)
    for start in range(0, flat.size, 1 << 20):  # in pieces: they are widened to float64
        counts += np.histogram(flat[start:start + (1 << 20)].astype(np.float64), bins, (-top, top))[0]
    return tuple(map(int, counts))


def page(title: str, subtitle: str, blocks: Iterable[str], footer: str = "") -> str:
    """A whole HTML document around blocks of HTML."""
    body = "\n".join(blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n{body}\n"
        f"<footer>{escape(footer)}</footer>\n</main></body></html>\n")


def section(title: str, html: str, lead: str = "") -> str:
    """A titled card around HTML, with a sentence below the title."""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(lead)}</p>' if lead else ''}{html}</section>"


def headline(text: str, grade: str = "fair") -> str:
    """The one sentence that says how it went, coloured by its grade."""
    return f'<p class="headline {grade}">{escape(text)}</p>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Summary tiles from (label, value, small print)."""
    cells = (f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
             f"<small>{escape(hint)}</small></div>" for label, value, hint in entries)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (),
          long: Iterable[int] = ()) -> str:
    """A table from escaped text cells; a cell that is Raw goes in as it is. The first column names the row.

    numeric: columns set to the right. long: columns whose text may break anywhere. The last column is small
    print when it has no title.
    """
    kinds = {0: "name", **dict.fromkeys(long, "wrap"), **dict.fromkeys(numeric, "n")}
    if not head[-1]:
        kinds[len(head) - 1] = "last"

    def line(tag, cells):
        return "".join(
            f'<{tag} class="{kinds.get(i, "")}">{c.html if isinstance(c, Raw) else escape(str(c))}</{tag}>'
            for i, c in enumerate(cells))
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    top = f"<thead><tr>{line('th', head)}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Raw:
    """A table cell that is HTML already."""

    html: str


def pill(text: str, grade: str = "") -> Raw:
    """A small label as a table cell."""
    return Raw(f'<span class="pill {grade}">{escape(text)}</span>')


def graded(text: str, grade: str) -> Raw:
    """A bold number as a table cell, coloured by its grade."""
    return Raw(f'<b class="{grade}">{escape(text)}</b>')


def bars(panels: Sequence[tuple[str, Sequence[Bar], float]]) -> str:
    """Horizontal bars in panels side by side, one line per label: [(title, bars, value of a full bar), ...].

    Every panel has the same labels in the same order; they are written once, on the left, without what all
    share.
    """
    width, row, top = 1100, 24, 22
    names = short_names([bar.label for bar in panels[0][1]])
    label_width = min(400, max(90, 14 + 7 * max(map(len, names), default=0)))
    span = (width - label_width) / len(panels)
    parts = []
    for line, (name, bar) in enumerate(zip(names, panels[0][1], strict=True)):
        room = label_width // 7 - 2
        short = name if len(name) <= room else f"{name[:room // 2 - 1]}…{name[-(room - room // 2):]}"
        parts.append(f'<text x="0" y="{top + row * line + 16}">{escape(short)}'
                     f"<title>{escape(bar.label)}</title></text>")
    for number, (title, entries, full) in enumerate(panels):
        left = label_width + span * number
        parts.append(f'<text class="soft" x="{left:.1f}" y="12">{escape(title)}</text>')
        parts.extend(_bar(left, top + row * line, span - 84, bar, full) for line, bar in enumerate(entries))
    return drawing(width, top + row * len(names) + 4, parts)


def drawing(width: int, height: int, parts: Iterable[str]) -> str:
    """Shapes as one picture as wide as the page, which scrolls on a narrow screen."""
    return (f'<div class="scroll"><svg class="plot" viewBox="0 0 {width} {height}" role="img">'
            f'{"".join(parts)}</svg></div>')


def details(summary: str, html: str) -> str:
    """HTML that shows when the summary is clicked on."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def key(entries: Iterable[tuple[str, str]]) -> str:
    """What colours and lines mean: (class of the style sheet, words)."""
    words = "".join(f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries)
    return f'<p class="key">{words}</p>'


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the path parts that all of them begin or end with: "/m/l.0/q/MatMul", "/m/l.1/k/MatMul"
    -> "l.0/q", "l.1/k". A single name, and names without a common part, stay as they are.
    """
    parts = [re.split(r"(?<=[/.])", name) for name in names]
    least = min(map(len, parts), default=0)
    if len(set(names)) < 2:
        return list(names)
    head = next((i for i in range(least) if len({part[i] for part in parts}) > 1), least - 1)
    tail = next((i for i in range(least - head) if len({part[-1 - i] for part in parts}) > 1), 0)
    return [
        "".join(part[head:len(part) - tail]).strip("/") or name
        for part, name in zip(parts, names, strict=True)
    ]


def histogram_chart(title: str, note: str, data: Histogram) -> str:
    """Weights (filled) against quantised weights (line); heights are logarithmic so that tails show."""
    width, height = 260, 92
    top = np.log1p(max(1, *data.before, *data.after))
    step = width / len(data.before)

    def y(count):
        return height - 4 - (height - 12) * np.log1p(count) / top
    outline = " ".join(f"H{i * step:.1f}V{y(c):.1f}H{(i + 1) * step:.1f}" for i, c in enumerate(data.before))
    filled = f'<path class="weight" d="M0 {y(0)}{outline}V{y(0)}Z"/>'
    points = " ".join(f"{(i + side) * step:.1f},{y(c):.1f}" for i, c in enumerate(data.after)
                      for side in (0, 1))
    marks = ((0, "start", data.low), (width / 2, "middle", 0), (width, "end", data.high))
    ends = "".join(f'<text class="soft" x="{x}" y="{height + 12}" text-anchor="{anchor}">{value:.3g}</text>'
                   for x, anchor, value in marks)
    return (
        f'<figure><figcaption><b title="{escape(title)}">{escape(title)}</b>'
        f"<span>{escape(note)}</span></figcaption>"
        f'<svg viewBox="0 0 {width} {height + 16}" role="img">{filled}'
        f'<polyline class="quant" points="{points}"/>'
        f'<line class="axis" x1="0" x2="{width}" y1="{height - 4}" y2="{height - 4}"/>{ends}</svg></figure>')


def charts(figures: Iterable[str]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="charts">{"".join(figures)}</div>'


def bullets(texts: Iterable[str]) -> str:
    """Sentences as a list."""
    return f'<ul>{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean."""
    return f'<dl>{"".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs)}</dl>'


def _bar(x: float, y: float, length: float, bar: Bar, full: float) -> str:
    def reach(value):
        return length * min(1.0, max(0.0, value) / full if full else 0.0)
    filled, grey = max(2.0 if bar.value > 0 else 0.0, reach(bar.value)), reach(min(bar.base, bar.value))
    under = (f'<rect class="weight" x="{x:.1f}" y="{y + 6}" width="{max(2.0, grey):.1f}" height="12" rx="3"/>'
             if bar.base > 0 else "")
    return (f'<rect class="track" x="{x:.1f}" y="{y + 6}" width="{length:.1f}" height="12" rx="3"/>'
            f'<rect class="{bar.grade}" x="{x:.1f}" y="{y + 6}" width="{filled:.1f}" height="12" rx="3"/>'
            f"{under}"
            f'<text x="{x + length + 7:.1f}" y="{y + 16}">{escape(bar.text)}</text>')
