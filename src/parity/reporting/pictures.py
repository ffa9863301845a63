"""Curves and bars of a report, drawn by matplotlib as SVG that takes the page's own colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from parity.reporting.sections import number

INK = "#010203"  # becomes currentColor, so that light and dark pages both can be read
MINE, TORCH, GAP = "#d55e00", "#0072b2", "#a6567f"  # told apart by colour-blind readers too
MOST_POINTS = 600

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parity",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor", "titlecolor")},
    **{f"{axis}tick.color": INK for axis in "xy"},
    "text.color": INK,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


def curves(entry: dict[str, Any], name: str) -> str:
    """Return both sides' losses above, their difference and the envelope below."""
    keep = _thinned(entry["steps"], entry["at"])
    steps = keep
    mine = [number(entry["mine"][i]) for i in keep]
    theirs = [number(entry["torch"][i]) for i in keep]
    gaps = [entry["gaps"][i] for i in keep]
    widths = [entry["widths"][i] for i in keep if i < len(entry["widths"])]

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.plot(steps, theirs, color=TORCH, linewidth=3.5, alpha=0.55, label="torch")
        upper.plot(steps, mine, color=MINE, linewidth=1.3, linestyle="--", label="mine")
        upper.set_ylabel("loss")
        upper.legend(loc="best")
        _log_panel(lower, steps, gaps, widths)
        lower.set_xlabel("step")

    return _svg(draw, (7.0, 4.2), name)


def _log_panel(axes: Any, steps: Sequence[int], gaps: list[float], widths: list[float]) -> None:
    """|mine - torch| on a log axis; steps without any difference have no mark."""
    shown = [g if 0 < g < math.inf else math.nan for g in gaps]
    if widths and len(widths) == len(steps):
        finite = [w for w in widths if 0 < w < math.inf]
        floor = min([*finite, *(g for g in shown if g == g)], default=1e-17) / 10
        axes.fill_between(
            steps, floor, [max(w, floor) if w == w else floor for w in widths],
            color=TORCH, alpha=0.22, linewidth=0, label="envelope",
        )  # fmt: skip
    if any(g == g for g in shown) or widths:
        axes.set_yscale("log")
        axes.plot(
            steps, shown, color=GAP, marker=".", markersize=3, linewidth=1, label="|mine − torch|"
        )
        axes.legend(loc="best", fontsize=8)
    else:
        axes.text(
            0.5, 0.5, "no difference at any step",
            ha="center", va="center", transform=axes.transAxes,
        )  # fmt: skip
        axes.set_yticks([])
    axes.set_ylabel("difference")


def bars(ratios: list[tuple[float, float, float]], name: str) -> str:
    """Return speed ratios (value, low, high) as numbered bars, from the first row down."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes = figure.subplots()
        places = list(range(1, len(ratios) + 1))
        values = [value for value, _, _ in ratios]
        colors = [TORCH if value <= 1 else MINE for value in values]
        axes.barh(places, values, color=colors, height=0.7)
        for place, (value, low, high) in zip(places, ratios, strict=True):
            if low == low and high == high:
                axes.plot(
                    [min(low, value), max(high, value)], [place, place], color=INK, linewidth=1
                )
        axes.axvline(1.0, color=INK, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        # labels at 1, 2 and 5 of each decade: at all of its ninths they would lie on each other
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(places)
        axes.invert_yaxis()
        axes.set_xlabel("NumPy time / torch time (left of 1: NumPy is faster)")
        axes.set_ylabel("row of the table")

    return _svg(draw, (7.0, min(1.2 + 0.24 * len(ratios), 12.0)), name)


def _svg(draw: Callable[[Any], None], size: tuple[float, float], name: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without some sign, a label that does not fit
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids must differ between the pictures of one page.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1
    )


def _thinned(count: int, keep: int) -> list[int]:
    """Return at most MOST_POINTS steps, the first, the last and ``keep`` among them."""
    if count <= MOST_POINTS:
        return list(range(count))
    chosen = {round(i * (count - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)}
    return sorted(chosen | {keep})
