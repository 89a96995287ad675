"""One self-contained HTML page: frame, tables, plots, pictures. No script, no network; every value that is not Markup is escaped.

Parts are built by the functions below and given to `page`. Colours follow the reader's light or dark setting.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --page: #fff; --card: #f4f5f7; --line: #d5d8dd;
  --c0: #2563c9; --c1: #b3541e; --c2: #1f7a4d; --c3: #8a3fa0; --c4: #a11d3d; --c5: #5c6b00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #a3a9b3; --page: #15171a; --card: #1f2226; --line: #3a3f46;
  --c0: #7fb0ff; --c1: #ffab73; --c2: #6fd3a0; --c3: #d49be8; --c4: #ff8fa6; --c5: #c9d65a } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
p, figcaption { max-width: 46rem } p.note, figcaption { color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; white-space: nowrap }
figure { margin: 1rem 0 } svg { width: 100%; max-width: 40rem; height: auto; display: block } svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
.axis { stroke: var(--line); fill: none } .curve { fill: none; stroke-width: 2 }
.bars { display: grid; grid-template-columns: minmax(5rem, auto) minmax(5rem, 2fr) max-content; margin: .8rem 0; gap: .2rem .7rem; align-items: center;
  max-width: 46rem; font-size: .9rem; font-variant-numeric: tabular-nums } .bars > :first-child { overflow-wrap: anywhere }
.track { position: relative; height: 1rem; background: var(--card) } .track > * { position: absolute; top: 0; bottom: 0 }
.bar { left: 0; background: var(--c0) }
.span { top: 45% !important; bottom: 45% !important; background: var(--ink) }
.legend span { margin-right: 1rem; white-space: nowrap }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .3rem 0 1rem; padding: 0; list-style: none }
.tiles li { width: 7.5rem; padding: .4rem; background: var(--card); font-size: .8rem; overflow-wrap: anywhere } .tiles li.hit { outline: 2px solid var(--c2) }
.tiles img { display: block; width: 100%; height: 5rem; object-fit: contain }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""of the page's own: whatever it holds, a browser loads nothing and runs nothing"""
WIDTH, HEIGHT, LEFT, BOTTOM = 440, 230, 52, 40
"""of a line plot, in SVG units"""


def page(title: str, *parts: str) -> str:
    """The whole document."""
    head = Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{}</title>\n<style>{}</style>\n</head>\n'
    ).format(POLICY, title, Markup(STYLE))
    return str(head + Markup("<body>\n<h1>{}</h1>\n{}\n</body>\n</html>\n").format(title, _joined(parts)))


def section(title: str, *parts: str) -> Markup:
    """A heading and what stands below it."""
    return Markup("<section>\n<h2>{}</h2>\n{}\n</section>").format(title, _joined(parts))


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup("<h3>{}</h3>").format(text)


def paragraph(text: str, *, is_note: bool = False) -> Markup:
    """Running text; notes are smaller."""
    return Markup('<p class="note">{}</p>' if is_note else "<p>{}</p>").format(text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Cells as `cell_text` writes them; columns of numbers are aligned right. Scrolls sideways where the page is narrow."""
    rows = [list(row) for row in rows]
    is_number = [any(isinstance(row[place], int | float) for row in rows) for place in range(len(header))]
    names = [Markup('<th scope="col"{}>{}</th>').format(_number_class(number), name) for name, number in zip(header, is_number, strict=True)]
    lines = [[Markup("<td{}>{}</td>").format(_number_class(number), cell_text(cell)) for cell, number in zip(row, is_number, strict=True)] for row in rows]
    body = Markup("\n").join(Markup("<tr>{}</tr>").format(_joined(line, "")) for line in lines)
    return Markup('<div class="wide"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table></div>').format(_joined(names, ""), body)


def cell_text(value: object) -> str:
    """Whole numbers with thousands separators, fractions with 4 digits, nothing known as a dash, anything else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value if isinstance(value, str) else str(value)


def bars(values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]] | None = None) -> Markup:
    """One horizontal bar per name, from 0 to the largest value, with a thin line over its interval where there is one. Negative values have no bar."""
    intervals = intervals or {}
    largest = max([*values.values(), *(high for _, high in intervals.values()), 0.0]) or 1.0
    lines = []
    for name, value in values.items():
        low, high = (min(max(100 * end / largest, 0), 100) for end in intervals.get(name, (0.0, 0.0)))
        span = Markup('<span class="span" style="left:{:.2f}%;width:{:.2f}%"></span>').format(low, high - low) if name in intervals else ""
        bar = Markup('<span class="bar" style="width:{:.2f}%"></span>').format(max(100 * value / largest, 0))
        lines.append(Markup('<span>{}</span><span class="track">{}{}</span><span>{}</span>').format(name, bar, span, cell_text(value)))
    return Markup('<div class="bars">\n{}\n</div>').format(_joined(lines))


def line_plot(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str) -> Markup:
    """Curves of (x, y) points, at most six, with a legend; each curve's points in order of x. An empty plot is a note."""
    series = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()}
    points = [point for curve in series.values() for point in curve]
    if not points:
        return paragraph(f"No values of {y_name}.", is_note=True)
    (left, right), (bottom, top) = (_limits([point[axis] for point in points]) for axis in (0, 1))
    across, up = (WIDTH - LEFT - 12) / (right - left), (HEIGHT - BOTTOM - 12) / (top - bottom)
    curves, legend = [], []
    for number, (name, curve) in enumerate(series.items()):
        places = [(LEFT + (x - left) * across, HEIGHT - BOTTOM - (y - bottom) * up) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        curves.append(Markup('<polyline class="curve" style="stroke:var(--c{})" points="{}"/>').format(number % 6, path))
        curves += [Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" style="fill:var(--c{})"/>').format(x, y, number % 6) for x, y in places if len(places) <= 30]
        legend.append(Markup('<span><b style="color:var(--c{})">●</b> {}</span>').format(number % 6, name))
    ticks = [Markup('<text x="{}" y="{}">{:.4g}</text>').format(x, HEIGHT - BOTTOM + 16, value) for x, value in ((LEFT, left), (WIDTH - 50, right))]
    ticks += [Markup('<text x="2" y="{}">{:.4g}</text>').format(y, value) for y, value in ((HEIGHT - BOTTOM, bottom), (18, top))]
    axes = Markup('<path class="axis" d="M{0} 8V{1}H{2}"/><text x="{3}" y="{4}" text-anchor="middle">{5}</text>').format(
        LEFT, HEIGHT - BOTTOM, WIDTH - 12, (LEFT + WIDTH) // 2, HEIGHT - 6, x_name
    )
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img"><title>{} by {}</title>{}</svg>').format(
        WIDTH, HEIGHT, y_name, x_name, _joined([axes, *ticks, *curves])
    )
    return Markup('<figure>{}<figcaption class="legend">{}: {}</figcaption></figure>').format(drawing, y_name, _joined(legend))


def tiles(entries: Iterable[tuple[bytes | None, str, bool]]) -> Markup:
    """Small cards in a row: (encoded picture or None, caption, whether it is marked)."""
    cards = [Markup("<li{}>{}{}</li>").format(Markup(' class="hit"') if hit else "", picture(data) if data else "", text) for data, text, hit in entries]
    return Markup('<ul class="tiles">{}</ul>').format(_joined(cards))


def picture(data: bytes, description: str = "") -> Markup:
    """An encoded PNG, JPEG or WebP inside the page."""
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(description, kind, base64.b64encode(data).decode())


def _joined(parts: Iterable[str], between: str = "\n") -> Markup:
    return Markup(between).join(escape(part) for part in parts)


def _number_class(is_number: bool) -> Markup:
    return Markup(' class="number"') if is_number else Markup("")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value, pulled apart where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
