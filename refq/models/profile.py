"""A plot of quantities along the layers of a model, as SVG for a page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from refq.models.figures import EXACT
from refq.models.page import drawing, key, short_names

NAMED = 26              # places that have their names below a profile; of more, numbers
STEPS = (1, 2, 5, 10, 20, 50)
FLOOR = -20.0           # values below it stand at the lower edge


@dataclass(frozen=True)
class Series:
    """One quantity at every place of a profile. style: "line" (with dots), "dashed" or "ring". values: None
    leaves a gap, what is not finite stands at the edge. grades: of the dots of a line."""

    style: str
    name: str
    values: Sequence[float | None]
    grades: Sequence[str] = ()


def profile(names: Sequence[str], series: Sequence[Series], texts: Sequence[str], unit: str,
            mark: int | None = None) -> str:
    """Quantities along the layers of a model, from the left to the right, with a key below.

    names: of the places. texts: what a pointer over a place is told. unit: of the values. mark: the place
    that is named in the plot. Infinite values stand above the others, as exact.
    """
    frame = _Frame.around(names, series)
    parts = [*frame.grid(unit), *frame.places(names, texts)]
    drawn = [_drawn(frame, each) for each in series]
    parts += [shapes for _, shapes in sorted(drawn, key=lambda pair: pair[0])]
    if mark is not None:
        parts.append(frame.named(mark, short_names(names)[mark], series[0].values[mark]))
    return drawing(frame.width, frame.height, parts) + key((each.style, each.name) for each in series)


@dataclass(frozen=True)
class _Frame:
    """Where a profile's values lie. low, high: at its lower and upper edge; step: between lines. count: of
    places. top: above the upper edge, where infinite values stand. foot: height of the names below."""

    low: float
    high: float
    step: float
    count: int
    top: int
    foot: int
    left: int
    width: int = 1100
    right: int = 12
    body: int = 200

    @classmethod
    def around(cls, names, series) -> "_Frame":
        values = [value for each in series for value in each.values if value is not None]
        finite = [max(FLOOR, value) for value in values if np.isfinite(value)] or [0.0, 10.0]
        step = next((step for step in STEPS if (max(finite) - min(finite)) / step <= 6), STEPS[-1])
        low, high = (step * f(end / step) for f, end in ((np.floor, min(finite)), (np.ceil, max(finite))))
        foot, left = 22, 44
        if len(names) <= NAMED:         # slanting names go down and to the left
            longest = max(len(_label(name)) for name in short_names(names))
            foot, left = 18 + round(4.6 * longest), max(left, round(5.2 * longest - 500 / len(names)))
        return cls(float(low), float(max(high, low + step)), step, len(names), 30 if np.inf in values else 10,
                   foot, left)

    @property
    def height(self) -> int:
        return self.top + self.body + self.foot

    @property
    def pitch(self) -> float:
        return (self.width - self.left - self.right) / self.count

    def x(self, place: int) -> float:
        return self.left + (place + 0.5) * self.pitch

    def y(self, value: float) -> float:
        if value == np.inf:
            return 10.0
        share = (value - self.low) / (self.high - self.low) if value > self.low else 0.0
        return self.top + self.body * (1 - share)

    def grid(self, unit: str) -> Iterable[str]:
        lines = [(self.low + self.step * i, f"{self.low + self.step * i:g}")
                 for i in range(round((self.high - self.low) / self.step) + 1)]
        if self.top > 10:
            lines.append((np.inf, EXACT))
        for number, (value, text) in enumerate(lines):
            y, words = self.y(value), f"{text} {unit}" if number == 0 else text
            yield (f'<line class="axis" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" '
                   f'y2="{y:.1f}"/><text class="soft" x="{self.left - 6}" y="{y + 4:.1f}" '
                   f'text-anchor="end">{escape(words)}</text>')

    def places(self, names, texts) -> Iterable[str]:
        short, below = short_names(names), self.top + self.body
        every = next(n for n in (1, 5, 10, 20, 50, 100, 200, 500, 1000, self.count) if self.count / n <= 25)
        for place, text in enumerate(texts):
            x = self.x(place)
            yield (f'<rect class="place" x="{x - self.pitch / 2:.1f}" y="{self.top}" '
                   f'width="{self.pitch:.1f}" height="{self.body}"><title>{escape(text)}</title></rect>')
            if self.count <= NAMED:
                yield (f'<text class="soft" text-anchor="end" transform="translate({x + 4:.1f} {below + 14}) '
                       f'rotate(-40)">{escape(_label(short[place]))}</text>')
            elif (place + 1) % every == 0 or place == 0:
                yield (f'<text class="soft" x="{x:.1f}" y="{below + 16}" text-anchor="middle">{place + 1}'
                       "</text>")

    def named(self, place: int, name: str, value: float | None) -> str:
        x, y = self.x(place), self.y(self.low if value is None else value)
        anchor = "start" if x < self.width * 0.7 else "end"
        return (f'<text class="mark" x="{x + (8 if anchor == "start" else -8):.1f}" y="{y + 16:.1f}" '
                f'text-anchor="{anchor}">{escape(_label(name))}</text>')


def _label(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:8]}…{name[-11:]}"


def _drawn(frame: _Frame, series: Series) -> tuple[int, str]:
    """(layer of the drawing, shapes) of a series."""
    points = [None if value is None else (frame.x(place), frame.y(value))
              for place, value in enumerate(series.values)]
    radius = min(4.5, max(1.6, frame.pitch / 4))
    if series.style == "ring":
        return 1, "".join(f'<circle class="ring" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="{radius:.1f}"/>'
                          for p in points if p)
    runs = "".join(f"{'L' if before else 'M'}{p[0]:.1f} {p[1]:.1f}"
                   for before, p in zip([None, *points], points) if p)
    path = f'<path class="{series.style}" d="{runs}"/>' if runs else ""
    if series.style == "dashed":
        return 0, path
    grades = series.grades or ["fair"] * len(points)
    return 2, path + "".join(f'<circle class="{grade}" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="{radius:.1f}"/>'
                             for p, grade in zip(points, grades) if p)
