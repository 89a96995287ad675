"""Plots of the data report as SVG with ticks: columns, a curve, a sound. Colours are those of `report_page`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 260, 58, 14, 12, 46
"""of a plot, in SVG units: about the pixels of a telephone, so that its words stay readable there"""


def columns_plot(series: Mapping[str, Sequence[float]], labels: Sequence[str], x_name: str, y_name: str) -> Markup:
    """Stacked columns. series: name → one height per place; labels: of places, as many as heights; few of them are written where they are many."""
    heights = np.array(list(series.values()), dtype=float)
    highest = float(heights.sum(axis=0).max()) or 1.0
    across, up = (WIDTH - LEFT - RIGHT) / len(labels), (HEIGHT - TOP - BOTTOM) / _nice_limit(highest)
    marks, base = [], np.zeros(len(labels))
    for number, row in enumerate(heights):
        for place, height in enumerate(row):
            if height > 0:
                y, x = HEIGHT - BOTTOM - (base[place] + height) * up, LEFT + place * across
                marks.append(
                    Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill:var(--c{})"><title>{}: {:,.0f} {}</title></rect>').format(
                        x, y, max(across - 1, 0.6), max(height * up, 0.5), number, labels[place], height, y_name
                    )
                )
        base += row
    room = max(len(label) for label in labels) * 7 + 12
    step = max(1, math.ceil(room / across))
    middles = [LEFT + (place + 0.5) * across for place in range(len(labels))]
    x_ticks = [(middles[place], labels[place]) for place in range(0, len(labels), step) if middles[place] + room / 2 < WIDTH]
    return _figure(marks, x_ticks, _y_ticks(highest, up), x_name, y_name, list(series) if len(series) > 1 else [])


def curve_plot(points: Sequence[tuple[float, float]], marked: Mapping[str, tuple[float, float]], x_name: str, y_name: str) -> Markup:
    """One curve from (0, 0) to (100, 100), both in percent, with marked points and the diagonal of equal shares."""
    across, up = (WIDTH - LEFT - RIGHT) / 100, (HEIGHT - TOP - BOTTOM) / 100

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * across, HEIGHT - BOTTOM - y * up

    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    marks = [
        Markup('<path class="axis" stroke-dasharray="4 4" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(*place(0, 0), *place(100, 100)),
        Markup('<polyline class="curve" style="stroke:var(--c0)" points="{}"/>').format(path),
    ]
    for name, point in marked.items():
        left, top = place(*point)
        marks.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" style="fill:var(--c1)"><title>{}</title></circle>').format(left, top, name))
    ticks = range(0, 101, 20)
    return _figure(
        marks, [(LEFT + tick * across, f"{tick}") for tick in ticks], [(HEIGHT - BOTTOM - tick * up, f"{tick}") for tick in ticks], x_name, y_name, []
    )


def wave_plot(wave: np.ndarray, description: str) -> Markup:
    """The envelope of a sound: (points, 2) smallest and largest samples in [-1, 1], drawn to the height of the loudest."""
    scale = 18 / max(float(np.abs(wave).max()), 1e-3)
    upper = " ".join(f"{place},{20 - high * scale:.1f}" for place, (_, high) in enumerate(wave))
    lower = " ".join(f"{place},{20 - low * scale:.1f}" for place, (low, _) in reversed(list(enumerate(wave))))
    shape = Markup('<svg viewBox="0 0 {} 40" preserveAspectRatio="none" role="img" style="height:2rem"><title>{}</title>')
    line = Markup('<polygon style="fill:var(--c2);stroke:var(--c2);stroke-width:.5" points="{} {}"/></svg>')
    return shape.format(len(wave), description) + line.format(upper, lower)


def _nice_limit(highest: float) -> float:
    """The end of an axis: a whole number of its ticks."""
    step = _nice_step(highest)
    return math.ceil(highest / step) * step


def _nice_step(highest: float) -> float:
    rough = highest / 4
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def _y_ticks(highest: float, up: float) -> list[tuple[float, str]]:
    step = _nice_step(highest)
    return [(HEIGHT - BOTTOM - number * step * up, _short_number(number * step)) for number in range(round(_nice_limit(highest) / step) + 1)]


def _short_number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _figure(
    marks: Sequence[Markup], x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str, legend: Sequence[str]
) -> Markup:
    nothing, floor = Markup(""), HEIGHT - BOTTOM
    grid = nothing.join(Markup('<path class="axis" d="M{0} {1:.1f}H{2}"/>').format(LEFT, y, WIDTH - RIGHT) for y, _ in y_ticks)
    words = nothing.join(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, text) for y, text in y_ticks)
    words += nothing.join(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, floor + 17, text) for x, text in x_ticks)
    words += Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 8, x_name)
    words += Markup('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>').format((TOP + floor) // 2, y_name)
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img"><title>{} by {}</title>{}{}{}</svg>').format(
        WIDTH, HEIGHT, y_name, x_name, grid, nothing.join(marks), words
    )
    entries = nothing.join(Markup('<span><b style="color:var(--c{})">■</b> {}</span> ').format(number, name) for number, name in enumerate(legend))
    return Markup("<figure>{}{}</figure>").format(drawing, Markup('<figcaption class="legend">{}</figcaption>').format(entries) if legend else nothing)
