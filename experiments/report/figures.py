"""The figures of a run: curves with intervals over seeds, cost, sweeps, and rewards and policies of a finite world.

Every curve is the interquartile mean over all seeds with its 95 % bootstrap interval; a diverged seed counts with its
last finite values, and every seed's last value is a dot of its own. The colours are ones that colour-blind readers tell
apart.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from experiments.files import write_figure
from experiments.report.summary import (
    Baselines,
    counted,
    counts,
    describe,
    hyper_points,
    key_metrics,
    last_finite,
    metric,
    number,
    point_label,
    shown_metrics,
)
from experiments.statistics.intervals import bars, interquartile_mean

Tables = Mapping[str, np.ndarray]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
BASELINE_STYLES = ("--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)))
STYLE = {"font.size": 8, "axes.titlesize": 10, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.5}
STYLE |= {"text.parse_math": False}  # a name with two dollar signs is a name
MEAN = {"marker": "o", "markersize": 4, "linewidth": 1.3, "capsize": 3}
DIAGNOSTICS = ("_norm", "_loss", "_change", "_ess")  # endings of what tells how it went, not what it reached
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # [rows down, columns right] of actions 0 to 3: up, right, down, left
COSTS = ("transitions", "labels", "gradient_evaluations")
INTERVAL = "95 % bootstrap interval"
MAX_POINTS = 2400  # drawn over all curves of a figure
MAX_BANDS = 12  # hyperparameter points up to which intervals can be told apart
MAX_MAPS = 3  # hyperparameter points whose reward and policy are drawn
MAX_DOTS = 300  # in a panel, up to which each is a shape of its own; more are one picture


@matplotlib.rc_context(STYLE)
def draw(dataset: xr.Dataset, baselines: Baselines | None = None, tables: Tables | None = None) -> dict[str, Figure]:
    """All figures that the run, of dims (hyper, seed, step), has data for, by name. Baselines, metric -> label ->
    value, are drawn as horizontal lines. The tables are of a finite world: `policy` and, where one is learned,
    `learned_reward` [hyper, seed, S, A], `true_reward` [S, A], and `grid` [rows, columns] of a grid world."""
    names = shown_metrics(dataset)
    baselines = _with_bounds(dataset, names, baselines or {})
    costs = [cost for cost in COSTS if cost in dataset and _is_spent_over_time(dataset, cost)]
    figures = {
        "outcomes": _curves(dataset, [(name, "") for name in names if not name.endswith(DIAGNOSTICS)], baselines),
        "optimisation": _curves(dataset, [(name, "") for name in names if name.endswith(DIAGNOSTICS)], baselines),
        "cost": _curves(dataset, [(name, cost) for name in key_metrics(names)[:1] for cost in costs], baselines),
        "seeds": _every_seed(dataset, key_metrics(names), baselines),
        "sweep": _sweep(dataset, key_metrics(names), baselines),
    }
    figures |= _tables(tables, [point_label(point) for point in hyper_points(dataset)]) if tables else {}
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    for figure in figures.values():  # once, and not each time that it is saved
        for axes in figure.axes:  # as a number: a relative size is another when it is saved, and with it the ticks
            axes.tick_params(which="both", labelsize=STYLE["font.size"])
        for _ in range(2):  # panels that the first has made smaller choose other ticks, whose labels may be wider
            figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
    return figures


def save_pngs(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Writes `figures/<name>.png` in the run's folder."""
    for name, figure in figures.items():
        write_figure(folder, f"figures/{name}.png", figure)
    return [folder / "figures" / f"{name}.png" for name in figures]


def _with_bounds(dataset: xr.Dataset, names: list[str], baselines: Baselines) -> Baselines:
    """The baselines, and of a metric that tells the most that is possible, that."""
    most = {name: dataset[name].attrs["valid_max"] for name in names if "valid_max" in dataset[name].attrs}
    return {**baselines, **{name: {**baselines.get(name, {}), "most possible": x} for name, x in most.items()}}


def _curves(dataset: xr.Dataset, drawn: list[tuple[str, str]], baselines: Baselines) -> Figure | None:
    """A panel for each pair of a metric and a cost that it is drawn against, "" for outer steps; None without pairs."""
    if not drawn:
        return None
    figure, panels = _panels(len(drawn))
    kept = _thin(dataset.sizes["step"], len(drawn) * dataset.sizes["hyper"])
    for axes, (name, cost) in zip(panels, drawn, strict=True):
        for i, color in enumerate(_colors(dataset.sizes["hyper"])):
            x = counts(dataset, cost, i).cumsum(axis=1).mean(axis=0) if cost else dataset["step"].values
            _draw_curve(axes, x[kept], metric(dataset, name, i)[:, kept], color, dataset.sizes["hyper"])
        _scale_curves(axes, name, describe(name, dataset[name].attrs).unit)
        x_label = f"{cost.replace('_', ' ')} so far, mean per seed" if cost else "outer step"
        _name(axes, dataset, name, baselines, x_label=x_label)
        if cost:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, dataset, _point_colors(dataset))
    return figure


def _is_spent_over_time(dataset: xr.Dataset, cost: str) -> bool:
    """Whether it is spent after the first step too: what is spent at once, before it, explains no curve."""
    return any(np.any(counts(dataset, cost, i)[:, 1:] > 0) for i in range(dataset.sizes["hyper"]))


def _draw_curve(axes: Axes, x: np.ndarray, values: np.ndarray, color, num_curves: int) -> None:
    """The mean over seeds of [seed, x], and its interval where so many curves leave intervals to be told apart."""
    y = interquartile_mean(values)
    if num_curves <= MAX_BANDS:
        axes.fill_between(x, y.low, y.high, color=color, alpha=0.2 if num_curves <= 4 else 0.1, linewidth=0)
    axes.plot(x, y.center, color=color, linewidth=1.3, marker="o" if len(x) == 1 else "", markersize=3)


def _scale_curves(axes: Axes, name: str, unit: str) -> None:
    axes.locator_params(axis="x", integer=True)
    drawn = np.concatenate([line.get_ydata() for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    if name.endswith(DIAGNOSTICS) and len(drawn) and drawn.min() > 0 and drawn.max() > 10 * drawn.min():
        axes.set_yscale("log")
    if unit == "share":
        axes.set_ylim(0, 1.05)  # a hundredth less than all is nothing to look at


def _name(axes: Axes, dataset: xr.Dataset, name: str, baselines: Baselines, when: str = "", x_label: str = "") -> None:
    """Writes what a panel shows and in which unit, and draws what is known of it as horizontal lines."""
    label, unit = describe(name, dataset[name].attrs)
    axes.set(title=label + when, ylabel=unit, xlabel=x_label)
    known = {who: x for who, x in baselines.get(name, {}).items() if x is not None and np.isfinite(x)}
    for i, (who, value) in enumerate(known.items()):
        style = BASELINE_STYLES[i % len(BASELINE_STYLES)]
        axes.axhline(value, color="#444444", linestyle=style, linewidth=1, label=f"{who}: {value:.4g}")


def _sweep(dataset: xr.Dataset, names: list[str], baselines: Baselines) -> Figure | None:
    """A row for each swept number and a column for each metric at the end; lines join points that differ in it alone."""
    points = hyper_points(dataset)
    swept = [name for name in points[0] if len({point[name] for point in points}) > 1]
    if not swept or not names:
        return None
    figure, panels = _panels(len(names) * len(swept), columns=len(names))
    lines = {hyper: _lines(points, hyper) for hyper in swept}
    labels = list(dict.fromkeys(label for found in lines.values() for label in found))
    colors = dict(zip(labels, _colors(len(labels)), strict=True))
    for axes, (hyper, name) in zip(panels, itertools.product(swept, names), strict=True):
        last = np.stack([last_finite(metric(dataset, name, i)) for i in range(len(points))], axis=1)
        x = dataset[hyper].values
        numeric = x.dtype.kind in "iuf" and np.isfinite(x).all()
        for label, line in lines[hyper].items():
            line = sorted(line, key=x.__getitem__) if numeric else line
            y = interquartile_mean(last[:, line])
            axes.errorbar(x[line] if numeric else x[line].astype(str), y.center, bars(y), color=colors[label], **MEAN)
        if numeric:
            _scale_sweep(axes, x)
        _name(axes, dataset, name, baselines, " at the end", hyper)
    _legend(figure, dataset, colors)
    return figure


def _lines(points: list[dict], hyper: str) -> dict[str, list[int]]:
    """The points that differ in `hyper` alone, by what they have in common ("" where nothing else is swept)."""
    found: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        found.setdefault(point_label({name: x for name, x in point.items() if name != hyper}), []).append(i)
    return found


def _scale_sweep(axes: Axes, x: np.ndarray) -> None:
    """A logarithmic axis over decades, and a tick at each value where there are few."""
    if x.min() > 0 and x.max() > 10 * x.min():
        axes.set_xscale("log")
    if len(np.unique(x)) <= 8:
        axes.minorticks_off()
        axes.set_xticks(np.unique(x), [number(value, 6) for value in np.unique(x).tolist()])


def _every_seed(dataset: xr.Dataset, names: list[str], baselines: Baselines) -> Figure | None:
    """A column of dots for each point, a dot a seed, with the interval over them beside it."""
    if not names:
        return None
    colors = _point_colors(dataset)
    num = dataset.sizes["hyper"]
    columns = min(len(names), 3 if num <= 6 else 2 if num <= 12 else 1)
    figure, panels = _panels(len(names), columns, 3.5 if num <= 6 else 10.5 / columns)
    for axes, name in zip(panels, names, strict=True):
        for i, color in enumerate(colors.values()):
            values = np.sort(last_finite(metric(dataset, name, i)))
            x = i - 0.1 + 0.4 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # apart, though neighbours in rank
            many = len(values) * num > MAX_DOTS
            style = {"markersize": 2.5, "alpha": 0.4} if many else {"markersize": 4, "alpha": 0.7}
            axes.plot(x, values, "o", color=color, markeredgewidth=0, rasterized=many, **style)
            y = interquartile_mean(values[:, None])
            axes.errorbar([i + 0.3], y.center, bars(y), color="black", **MEAN | {"marker": "D"})
        axes.set(xlim=(-0.6, num - 0.4), xticks=[])
        _name(axes, dataset, name, baselines, " at the end")
    _legend(figure, dataset, colors, every_seed=True)
    return figure


def _tables(tables: Tables, labels: list[str]) -> dict[str, Figure]:
    if not {"grid", "learned_reward"} & {*tables}:
        return {}
    shown = np.unique(np.linspace(0, len(labels) - 1, min(MAX_MAPS, len(labels))).round().astype(int))
    one_figure = _grid_maps if "grid" in tables else _heat_maps
    names = ["rewards"] if len(labels) == 1 else [f"rewards_{i}" for i in shown]
    return {name: one_figure(tables, i, labels[i]) for name, i in zip(names, shown, strict=True)}


def centred_rewards(tables: Tables, hyper: int) -> list[np.ndarray]:
    """The learned reward, if there is one, and the true one [S, A], each less its mean over all S·A: comparisons fix a
    reward only up to a constant. The learned one is the mean over the seeds in which it is finite."""
    learned = [_mean_over_seeds(tables["learned_reward"][hyper])] if "learned_reward" in tables else []
    return [reward - reward.mean() for reward in (*learned, np.asarray(tables["true_reward"], np.float64))]


def _mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """[seed, S, A] -> [S, A], over the seeds in which all is finite; NaN if there is none."""
    finite = np.isfinite(values).all(axis=(1, 2))
    return np.mean(values[finite], axis=0, dtype=np.float64) if finite.any() else np.full(values.shape[1:], np.nan)


def _grid_maps(tables: Tables, hyper: int, label: str) -> Figure:
    grid, policy = tables["grid"], _mean_over_seeds(tables["policy"][hyper])
    rewards = [reward.mean(axis=1) for reward in centred_rewards(tables, hyper)]
    titles = ("learned reward", "true reward", "learned policy, over the true reward")[-len(rewards) - 1 :]
    figure = _figure(3.5 * len(titles), 0.8 + 3.15 * grid.shape[0] / grid.shape[1])
    panels = figure.subplots(1, len(titles))
    for axes, title, reward in zip(panels, titles, (*rewards, rewards[-1]), strict=True):
        image = _draw_reward(axes, np.ma.masked_array(reward[grid], grid < 0), _limit(*rewards), "equal")
        axes.set(title=title, xticks=[], yticks=[])
    _draw_arrows(panels[-1], grid, policy)
    figure.colorbar(image, ax=panels, label="reward, less its mean", pad=0.01)
    _title(figure, "mean over seeds and actions", label)
    return figure


def _draw_reward(axes: Axes, reward: np.ndarray, limit: float, aspect: str) -> AxesImage:
    colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#333333")
    return axes.imshow(reward, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect)


def _draw_arrows(axes: Axes, grid: np.ndarray, policy: np.ndarray) -> None:
    """From each free cell an arrow for each action, as long as it is probable."""
    row, column = np.nonzero(grid >= 0)
    probability = policy[grid[row, column]]  # [cells, actions]
    cell, action = np.nonzero(probability > 0.05)
    likely = probability[cell, action][:, None]
    along = 0.46 * likely * np.array(MOVES)[action][:, ::-1]  # [arrows, (x, y)]
    tail = np.stack([column, row], axis=1)[cell]
    tip = tail + along
    back = np.where(likely > 0.3, 0.32, 0) * along  # no head on what a uniform policy would draw
    aside = back[:, ::-1] * [-1, 1]
    path = np.stack([tail, tip, tip - back + aside, tip, tip - back - aside, np.full_like(tip, np.nan)], axis=1)
    axes.plot(path[..., 0].ravel(), path[..., 1].ravel(), color="black", linewidth=0.8)


def _heat_maps(tables: Tables, hyper: int, label: str) -> Figure:
    learned, true = centred_rewards(tables, hyper)
    limit = _limit(learned, true)
    figure = _figure(10.5, 3.9)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for axes, title, reward in zip(panels, ("learned reward", "true reward"), (learned, true), strict=False):
        image = _draw_reward(axes, reward, limit, "auto")
        axes.set(title=title, xlabel="action", ylabel="state")
        axes.locator_params(integer=True)
    figure.colorbar(image, ax=panels[:2], label="reward, less its mean", pad=0.02)
    panels[2].plot([-limit, limit], [-limit, limit], color="#888888", linestyle="--", linewidth=1, label="equal")
    shown = np.linspace(0, true.size - 1, min(true.size, 400)).astype(int)
    panels[2].plot(true.ravel()[shown], learned.ravel()[shown], "o", color=PALETTE[0], markersize=3, alpha=0.5)
    panels[2].set(title="state-action pairs", xlabel="true reward", ylabel="learned reward")
    panels[2].legend(fontsize=7)
    _title(figure, "mean over seeds", label)
    return figure


def _title(figure: Figure, what: str, label: str) -> None:
    point = f"{label}: " if label else ""
    figure.suptitle(f"{point}{what}; a reward is learned only up to a constant", fontsize=9)


def _limit(*rewards: np.ndarray) -> float:
    """The end of a colour scale about 0 that has room for all finite rewards."""
    finite = np.concatenate([reward[np.isfinite(reward)] for reward in rewards])
    return float(np.max(np.abs(finite), initial=0)) or 1.0


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure


def _panels(num: int, columns: int = 3, width: float = 3.5) -> tuple[Figure, list[Axes]]:
    columns = min(columns, num)
    rows = -(-num // columns)
    figure = _figure(width * columns, 2.5 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.grid()
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[num:]:
        axes.remove()
    return figure, list(panels[:num])


def _thin(num_steps: int, num_curves: int) -> np.ndarray:
    num_points = max(20, min(200, MAX_POINTS // num_curves))
    return np.unique(np.linspace(0, num_steps - 1, min(num_steps, num_points)).round().astype(int))


def _colors(num: int) -> list:
    return (
        list(PALETTE[:num]) if num <= len(PALETTE) else list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, num)))
    )


def _point_colors(dataset: xr.Dataset) -> dict:
    """The colour of each point, by its label."""
    labels = [point_label(point) for point in hyper_points(dataset)]
    return dict(zip(labels, _colors(len(labels)), strict=True))


def _legend(figure: Figure, dataset: xr.Dataset, colors: Mapping, every_seed: bool = False) -> None:
    """One legend above all panels: what each colour is, the interval, and the baselines, each once."""
    num_seeds = dataset.sizes["seed"]
    what = f"interquartile mean over {num_seeds:,} seeds" if num_seeds > 1 else "the only seed"
    single, title, marks = what, what, {}
    if every_seed:
        single, title, marks = (
            "a seed",
            f"a dot for each of {counted(num_seeds, 'seed')}",
            {"marker": "o", "linestyle": ""},
        )
    entries = {label or single: Line2D([], [], color=color, **marks) for label, color in colors.items()}
    if every_seed and num_seeds > 1:
        entries["interquartile mean"] = Line2D([], [], color="black", marker="D", linestyle="", markersize=4)
        entries[INTERVAL] = Line2D([], [], color="black")
    elif num_seeds > 1 and len(colors) <= MAX_BANDS:
        entries[INTERVAL] = Patch(color="#888888", alpha=0.3, linewidth=0)
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = max(1, int(12.5 * figure.get_figwidth() / (8 + max(map(len, entries)))))
    figure.set_figheight(figure.get_figheight() + 0.17 * (len(entries) // columns))
    style = {"loc": "outside upper center", "ncols": columns, "frameon": False, "handlelength": 2.6}
    figure.legend(entries.values(), entries.keys(), title=title if len(colors) > 1 else None, **style)
