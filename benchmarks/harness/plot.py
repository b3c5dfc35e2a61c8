"""Draw plots as small SVG files that follow the reader's light or dark mode, with text as text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

Series = tuple[str, list[float]]
Panels = Sequence[tuple[str, list[Series], bool]]

# a colour that matplotlib writes, the variable that takes its place, and its values in light and dark
_COLOURS = (
    ("#010101", "ink", "#1e293b", "#e2e8f0"),
    ("#020202", "axis", "#94a3b8", "#64748b"),
    ("#030303", "grid", "#e2e8f0", "#232b36"),
    ("#040404", "paper", "#ffffff", "#11161d"),
    ("#050505", "s0", "#3f74d6", "#6f9df0"),
    ("#060606", "s1", "#c2570c", "#f0a35e"),
    ("#070707", "s2", "#2f9266", "#4cb48a"),
    ("#080808", "s3", "#8257d3", "#a98bea"),
)
_SERIES = [colour for colour, name, _, _ in _COLOURS if name[0] == "s"]
_INK, _AXIS, _GRID, _PAPER = (colour for colour, *_ in _COLOURS[:4])
_FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'
_MARKS = "os^D"


def lines(title: str, x: str, xs: list[float], labels: list[str], panels: Panels) -> str:
    """Return curves over a logarithmic x axis, whose ticks are the measured points."""
    pyplot, figure, axes = _figure(title, panels)
    for axis, (_, series, from_zero) in zip(axes, panels, strict=True):
        for number, (name, ys) in enumerate(series):
            axis.plot(xs, ys, color=_SERIES[number], marker=_MARKS[number], markersize=4, linewidth=1.8, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(xs, labels)
        axis.set_xticks([], minor=True)
        axis.set_xlabel(x, color=_INK)
        if not from_zero:
            axis.set_yscale("log")
        _tidy(axis, from_zero)
    return _svg(pyplot, figure)


def bars(title: str, labels: list[str], panels: Panels) -> str:
    """Return groups of horizontal bars, one group a row, with its number at the end of each bar."""
    pyplot, figure, axes = _figure(title, panels, height=1.3 + 0.26 * len(labels) * max(len(one[1]) for one in panels))
    for axis, (_, series, _) in zip(axes, panels, strict=True):
        thick = 0.8 / len(series)
        for number, (name, ys) in enumerate(series):
            known = [0.0 if value != value else value for value in ys]
            places = [row + thick * (number - (len(series) - 1) / 2) for row in range(len(labels))]
            drawn = axis.barh(places, known, thick * 0.9, color=_SERIES[number], label=name)
            texts = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in known]
            axis.bar_label(drawn, [text if value else "n/a" for text, value in zip(texts, known, strict=True)],
                           padding=3, color=_INK, fontsize=9)  # fmt: skip
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.set_xlabel(axis.get_ylabel(), color=_INK)
        axis.set_ylabel("")
        axis.locator_params(axis="x", nbins=4)
        _tidy(axis, from_zero=False)
    return _svg(pyplot, figure)


def _figure(title: str, panels: Panels, height: float = 3.2) -> tuple[Any, Any, Any]:
    import matplotlib  # only here: the figures themselves are measured and printed without it

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "path.simplify": True})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), height), squeeze=False, layout="constrained", facecolor=_PAPER
    )
    figure.suptitle(title, color=_INK, fontsize=12)
    for axis, (y, _, _) in zip(axes[0], panels, strict=True):
        axis.set_ylabel(y, color=_INK)
    return pyplot, figure, list(axes[0])


def _tidy(axis: Any, from_zero: bool) -> None:
    from matplotlib import ticker

    axis.set_facecolor(_PAPER)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", color=_AXIS, labelcolor=_INK, labelsize=9)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_AXIS)
    if from_zero:
        axis.set_ylim(bottom=0)
    elif axis.get_yscale() == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(frameon=False, labelcolor=_INK, fontsize=9)


def _svg(pyplot: Any, figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    svg = re.sub(r"<\?xml.*?<svg ", "<svg ", out.getvalue(), count=1, flags=re.S)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?sans-serif|(?<=px )'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for colour, name, _, _ in _COLOURS:
        svg = svg.replace(colour, f"var(--{name})")
    light, dark = (";".join(f"--{one[1]}:{one[place]}" for one in _COLOURS) for place in (2, 3))
    style = f"<style>svg{{{light};--font:{_FONT}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg [^>]*>)", rf"\1\n {style}", svg, count=1)
