"""What the figures of claims share: a palette, panels, curves with intervals, a theorem's slope beside them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.figures import PALETTE
from experiments.statistics.intervals import Interval, bars
from experiments.statistics.rates import Fit, Slope

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, _ = PALETTE
SAMPLES = "samples (transitions a seed); bars: 95 % intervals of the mean"


def panels(width: float, height: float, rows: int = 1, columns: int = 1, title: str = "", share_x=False, share_y=False):
    """Returns an empty figure, in inches, and its panels [rows, columns], each with a grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    for panel in axes.ravel():
        panel.grid(alpha=0.3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def curve(panel: Axes, x, of: Interval, color, label: str | None = None, marker="o", linestyle="-") -> None:
    """Draws means with 95 % intervals, each [level], against x, joined by a line."""
    style = dict(color=color, marker=marker, linestyle=linestyle, linewidth=1.2, markersize=4, capsize=2)
    panel.errorbar(x, of.center, bars(of), label=label, **style)


def band(
    panel: Axes, x, of: Interval, color, label: str | None = None, linestyle="-", marker="", width: float = 1.4
) -> None:
    """Draws a line of means against x in the band of their 95 % intervals; the arguments are those of `curve`."""
    style = dict(color=color, linestyle=linestyle, marker=marker, markersize=4, linewidth=width)
    panel.plot(x, of.center, label=label, **style)
    panel.fill_between(x, of.low, of.high, color=color, alpha=0.2, linewidth=0)


def guide(panel: Axes, x, first: float, slope: float, label: str | None, color="0.4", linestyle="-.") -> None:
    """Draws a power law of that slope on log axes, through `first` at the first x."""
    x = np.asarray(x, float)
    panel.plot(x, first * (x / x[0]) ** slope, color=color, linestyle=linestyle, linewidth=1, label=label)


def levels(panel: Axes, x, epsilons: Sequence[float], start: float) -> None:
    """Draws what each level of a ladder asks for, ε in the gap's unit at its x, and the mean gap of the starts."""
    panel.plot(x, epsilons, "o:", color="0.5", markersize=3, linewidth=1, label="ε of the level")
    place = dict(xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7, color="0.4")
    for at, epsilon in zip(x, epsilons, strict=True):
        panel.annotate(f"{epsilon:.2g}", (at, epsilon), **place)
    panel.axhline(start, color="0.5", linestyle="--", linewidth=1, label=f"gap at the start, {start:.2g} in the mean")


def log_log(panel: Axes, x_label: str, y_label: str) -> None:
    """Makes axes logarithmic and labels them; the vertical one stays linear where nothing finite was drawn."""
    drawn = [np.asarray(line.get_ydata(), float) for line in panel.lines]
    finite = any(np.isfinite(values).any() for values in drawn)
    panel.set(xscale="log", yscale="log" if finite else "linear", xlabel=x_label, ylabel=y_label)


def ticks(panel: Axes, values: Sequence[float]) -> None:
    """Puts the ticks of a logarithmic horizontal axis at those values alone."""
    panel.set_xticks(values, [f"{x:g}" for x in values])
    panel.xaxis.minorticks_off()


def legend_below(panel: Axes, title: str | None = None, columns: int = 1) -> None:
    """Puts a legend under the panel, where it covers no data."""
    place = dict(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=6.0)
    panel.legend(fontsize=8, title=title, title_fontsize=8, ncols=columns, **place)


def exponent_label(fit: Fit | Slope, symbol: str = "p") -> str:
    """Returns a fitted exponent with its interval, as in `p = 0.31 [0.29, 0.33]`, or that there is none."""
    if np.isnan(fit.exponent):
        return "no exponent"
    low, high = fit.interval
    return f"{symbol} = {fit.exponent:.2f} [{low:.2f}, {high:.2f}]".replace("inf", "∞")
