"""Parts of a page in HTML: escaped text, tables that can be sorted, and line charts.

Whatever comes from outside (names of classes, models and files, and sentences with them) goes through `text`. All other
functions return HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "resources"


@dataclass(frozen=True)
class Markup:
    """HTML that is not escaped again."""

    code: str


@dataclass(frozen=True)
class Number:
    """A number of a table's cell: it is shown with so many decimals and a unit, and sorted by its value.

    judged: whether a signed number is coloured as better (above 0) or worse.
    """

    value: float | None
    decimals: int = 0
    unit: str = ""
    signed: bool = False
    judged: bool = True

    @property
    def is_missing(self) -> bool:
        """Whether there is no value."""
        return self.value is None or self.value != self.value

    def __str__(self) -> str:
        if self.value is None or self.is_missing:
            return ""
        sign = "+" if self.signed else ""
        return f"{self.value:{sign},.{self.decimals}f}".replace("-", "−") + self.unit


def text(value: object) -> str:
    """Return any value as escaped text, for elements and for attributes in quotes."""
    return value.code if isinstance(value, Markup) else html.escape(str(value))


def identifier(*names: str) -> str:
    """Return an id for an element, the same for the same names and for no others."""
    return f"p-{hashlib.sha256(repr(names).encode()).hexdigest()[:12]}"


def link(target: str, value: object) -> Markup:
    """Return a link to the element of this id."""
    return Markup(f'<a href="#{text(target)}">{text(value)}</a>')


def cell(value: object, tag: str = "td") -> str:
    """Return a cell of a table; a `Number` has its value beside it, by which the table is sorted."""
    if isinstance(value, Number):
        data = "" if value.is_missing else repr(float(value.value or 0))
        colour = ""
        is_judged = value.signed and value.judged and value.value is not None and not value.is_missing
        if is_judged and round(value.value or 0, value.decimals):
            colour = " worse" if (value.value or 0) < 0 else " better"
        return f'<td class="number{colour}" data-value="{data}">{text(value)}</td>'
    return f"<{tag}>{text('' if value is None else value)}</{tag}>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], sortable: bool = True) -> str:
    """Return a table that scrolls sideways if it is too wide."""
    body, numeric = [], set()
    for row in rows:
        numeric |= {place for place, value in enumerate(row) if isinstance(value, Number)}
        body.append("<tr>" + "".join(map(cell, row)) + "</tr>")
    titles = []
    for place, head in enumerate(heads):
        kind = ' class="number"' if place in numeric else ""
        title = f'<button type="button">{text(head)}</button>' if sortable else text(head)
        titles.append(f'<th scope="col"{kind}>{title}</th>')
    sort = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" tabindex="0"><table{sort}><thead><tr>{"".join(titles)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def pairs(values: Mapping[str, object]) -> str:
    """Return names and values as a table of two columns; without those that are None or empty."""
    rows = [
        f'<tr><th scope="row">{text(name)}</th>{cell(value)}</tr>'
        for name, value in values.items()
        if value is not None and value != ""
    ]
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Return a confusion matrix: a row for each true class, shaded by the share of its images."""
    rows = []
    for name, counts in zip(classes, matrix, strict=True):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td style="background:rgba({"0,114,178" if other == name else "179,71,0"},{0.6 * count / total:.2f})">'
            f"{count}</td>"
            for other, count in zip(classes, counts, strict=True)
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in classes)
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th scope="col">true, answer</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def image(path: Path, description: str) -> str:
    """Return a PNG file as an image that is part of the page.

    It is at most as wide as the page; a click enlarges it.
    """
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the header of a PNG file
    data = base64.b64encode(content).decode()
    return (
        f'<div class="scroll zoom"><img src="data:image/png;base64,{data}" alt="{text(description)}" '
        f'style="width:{width / 200 * 110:.0f}px"></div>'
    )


def chart(lines: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], mark: float | None, label: str) -> str:
    """Return lines of percentages against the epoch as SVG, with a legend.

    lines: {name: (colour, points (epoch, value in 0..100))}. mark: the selected epoch. label: what a screen reader
    says.
    """
    width, height, left, bottom = 480, 210, 34, 26
    epochs = [epoch for _, points in lines.values() for epoch, _ in points]
    first, last = min(epochs, default=1), max(epochs, default=1)

    def x(epoch: float) -> float:
        return left + (width - left - 8) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return 6 + (height - bottom - 6) * (1 - value / 100)

    parts = [
        f'<line x1="{left}" x2="{width - 8}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e6e6e6"/>'
        f'<text x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        for tick in (0, 25, 50, 75, 100)
    ]
    parts += [f'<text x="{x(e):.1f}" y="{height - 8}" text-anchor="middle">{e:g}</text>' for e in {first, last}]
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">epoch</text>')
    if mark is not None:
        parts.append(
            f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="6" y2="{height - bottom}" stroke="#222" '
            'stroke-dasharray="4 3"/>'
        )
    for colour, points in lines.values():
        places = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) == 1:
            parts.append(f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3" fill="{colour}"/>')
    legend = "".join(
        f'<span><i style="border-color:{colour}"></i>{text(name)}</span>' for name, (colour, _) in lines.items()
    )
    if mark is not None:
        legend += '<span><i class="mark" style="border-color:#222"></i>selected epoch</span>'
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}" font-size="11" '
        f'font-family="sans-serif" fill="#666">{"".join(parts)}</svg><div class="legend">{legend}</div>'
    )


def page(title: str, sections: Sequence[tuple[str, str, str]], introduction: str) -> str:
    """Return a whole page that loads nothing: sections are (id, title, HTML), and the first stands below no title.

    Its policy lets a browser run the page's own script alone, so that no text on it can become one.
    """
    style, script = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#{text(name)}">{text(head)}</a>' for name, head, _ in sections)
    bodies = "".join(
        f'<section id="{text(name)}"><h2>{text(head)}</h2>{content}</section>' for name, head, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Sections"><div>{links}</div></nav>
<main>
<h1>{text(title)}</h1>
{introduction}
{bodies}
</main>
<script>{script}</script>
</body>
</html>
"""
