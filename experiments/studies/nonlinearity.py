"""What a network in place of a table costs: for the reward (the upper level), the critic and the policy (the lower level).

Reward: Φ on random MDPs of three states and two actions where everything is enumerated, with classes from affine to deep.
What Algorithm 1 with exact gradients loses against the best Φ found in any class has two parts: what the best found in its
own class lacks, and where it ends below that. Beside it the meters of weak gradient domination on the same instance. The
true reward is additive, r(s) + r(a), which every class holds or approaches at any accuracy, plus `interaction` times the
rest of a random table: with it the affine class and the narrow networks are misspecified. A network of width 8 or 16 can
represent every table: what its best lacks, the search from its starts has not found.

Rewards: `reward_classes`. Critic and policy, against what their class can hold: `approximation`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.files import write_figure, write_json
from experiments.report.summary import Estimate, bars, estimate, share
from experiments.studies import critic
from experiments.studies.approximation import (
    CLASSES,
    COLORS,
    CRITIC_SIZES,
    PolicySizes,
    critics,
    draw_critics,
    draw_policies,
    policy_returns,
    summarise_critics,
    summarise_policies,
)
from experiments.studies.domination import finished, lower_maxima, median
from experiments.studies.reward_classes import (
    Measured,
    Sizes,
    by_meter,
    converged,
    correlations,
    ends_below,
    losses,
    measure_class,
)


class Result(NamedTuple):
    """By class: the reward's measurements, the policy's returns [restart], the critic's errors and direct fits."""

    rewards: dict[str, Measured]
    policies: dict[str, np.ndarray]
    critics: dict[str, tuple[np.ndarray, np.ndarray]]


def study(
    sizes: Sizes = Sizes(),  # noqa: B008
    policy_sizes: PolicySizes = PolicySizes(),  # noqa: B008
    critic_sizes: critic.Sizes = CRITIC_SIZES,
    say=lambda line: None,
    names=tuple(CLASSES),
) -> Result:
    """Measures the named classes of rewards and policies, and the critic's that `critic_sizes` lists."""
    rewards = {name: measure_class(name, sizes, say) for name in names}
    policies = {}
    for name in names:
        policies[name] = policy_returns(name, policy_sizes)
        say(f"policy {name}: done")
    return Result(rewards, policies, critics(critic_sizes, say))


def summarise(result: Result, sizes: Sizes) -> dict:
    """All numbers with their 95 % intervals over instances or seeds, as JSON values.

    Means of losses and interquartile means of the return, whose tails are heavy; medians of μ̂₁; shares of instances.
    """
    rows = []
    for place, (name, (below, left)) in enumerate(losses(result.rewards).items()):
        found = result.rewards[name]
        means = {"class_below_best": below, "left": left, "lost": below + left}
        numbers = {key: estimate(np.moveaxis(x, -1, 0), trim=0) for key, x in means.items()}
        numbers |= {"return": estimate(np.moveaxis(found.returned, -1, 0)), "domination": median(found.domination)}
        numbers["lower_maximum"] = share(lower_maxima(found).any(axis=-1))
        numbers["ends_below"] = share(ends_below(result.rewards)[place])
        ends = {"converged": converged(found), "ascents_finished": finished(found).mean(axis=-1)}
        for i, j in np.ndindex(found.best.shape[:2]):
            row = {"class": name, "kl_weight": sizes.kl_weights[i], "interaction": sizes.interactions[j]}
            row |= {key: [float(y[i, j]) for y in x[:3]] for key, x in numbers.items()}
            rows.append(row | {key: float(x[i, j].mean()) for key, x in ends.items()})
    parts = estimate(by_meter(result.rewards), trim=0)
    ranks = []
    for i, j in np.ndindex(len(sizes.kl_weights), len(sizes.interactions)):
        rank = {"kl_weight": sizes.kl_weights[i], "interaction": sizes.interactions[j]}
        rank |= {"ends_below_by_fifths": np.transpose([x[:, i, j] for x in parts[:3]]).tolist()}
        ranks.append(rank | correlations(result.rewards, (i, j)))
    lower = {"policy": summarise_policies(result.policies), "critic": summarise_critics(result.critics)}
    return {"reward": rows, "meter": ranks, **lower}


def draw(summary: dict) -> Figure:
    """Reward: what is lost, and whether the meter tells; critic and policy: what is reached, and what can be."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    draw_losses(axes[0, 0], summary["reward"])
    draw_meters(axes[0, 1], summary["meter"])
    draw_critics(axes[1, 0], summary["critic"])
    draw_policies(axes[1, 1], summary["policy"])
    for panel in axes.ravel():
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle("Networks in place of tables, level by level, with 95 % intervals", fontsize=12)
    return figure


def _truths(rows: list[dict]):
    """(color, what it is, rows) for each interaction, at the first w."""
    rows = [row for row in rows if row["kl_weight"] == rows[0]["kl_weight"]]
    for color, interaction in zip(COLORS, sorted({row["interaction"] for row in rows}), strict=False):
        about = "additive truth" if interaction == 0 else "truth with interaction"
        yield color, about, [row for row in rows if row["interaction"] == interaction]


def _estimates(intervals: list[list[float]]) -> Estimate:
    """Rows of center, low and high as one."""
    return Estimate(*np.transpose(intervals), num=np.full(len(intervals), np.nan))


def draw_losses(panel, rows: list[dict]) -> None:
    """For each class what its best lacks, what Algorithm 1 leaves on top, and on how many instances maxima trap."""
    by_truth = []
    for j, (color, about, of) in enumerate(_truths(rows)):
        by_truth.append(of)
        place = np.arange(len(of)) + 0.4 * j - 0.2
        below, total = ([row[key][0] for row in of] for key in ("class_below_best", "lost"))
        spread = bars(_estimates([row["lost"] for row in of]))
        style = dict(width=0.36, edgecolor=color)
        panel.bar(place, below, color=color, label=f"{about}: the best found in the class", **style)
        left = np.subtract(total, below)
        panel.bar(place, left, bottom=below, color="white", hatch="//", label="and what Algorithm 1 leaves", **style)
        panel.errorbar(place, total, spread, fmt="none", color="black", linewidth=1)
        for x, row in zip(place, of, strict=True):
            style = dict(ha="center", va="bottom", fontsize=7, color=color)
            panel.text(x, row["lost"][2] + 0.004, f"{row['lower_maximum'][0]:.0%}", **style)
    returns = [" | ".join(f"{row['return'][0]:.2f}" for row in both) for both in zip(*by_truth, strict=True)]
    panel.set_xticks(
        range(len(of)), [f"{row['class']}\n{text}" for row, text in zip(of, returns, strict=True)], fontsize=8
    )
    panel.set_xlabel(
        "class of rewards (hidden widths), and below it the return under the two truths,\n"
        "0 reference, 1 KL-optimal policy; above the bars: instances with a lower maximum"
    )
    panel.set_ylabel("lost of the Φ that the best of all classes\ngains over a constant reward, share")
    panel.set_title(f"Reward: Φ lost by Algorithm 1, exact gradients, w = {of[0]['kl_weight']:g}", fontsize=10)


def draw_meters(panel, rows: list[dict]) -> None:
    """How often Algorithm 1 ends below its class's best, by the meter on the instance."""
    for color, about, (row,) in _truths(rows):
        ends = _estimates(row["ends_below_by_fifths"])
        label = "{}: Spearman's ρ {:.2f} [{:.2f}, {:.2f}]".format(about, *row["left"]["within"])
        panel.errorbar(
            np.arange(len(ends.center)), ends.center, bars(ends), fmt="o-", color=color, capsize=3, label=label
        )
    panel.set_xticks(range(len(ends.center)), ["lowest\nfifth", *["·"] * (len(ends.center) - 2), "highest\nfifth"])
    panel.set(xlabel="instances by their μ̂₁ within the class", ylim=(0, 0.55))
    panel.set_ylabel("share of runs that end below\nthe best of their class")
    panel.set_title("Does the meter of gradient domination tell? ρ of μ̂₁ and what is left", fontsize=10)


def main(out: Path, say=print) -> None:
    """Runs the study and writes `nonlinearity.png` and `nonlinearity.json`."""
    sizes = Sizes()
    report(study(sizes, say=say), sizes, out, say)


def report(result: Result, sizes: Sizes, out: Path, say=print) -> None:
    """Writes the figure and the numbers, and says tables."""
    summary = summarise(result, sizes)
    write_json(out, "nonlinearity.json", summary)
    write_figure(out, "nonlinearity.png", draw(summary), dpi=120)
    for row in summary["reward"]:
        names = "class_below_best", "left", "return", "lower_maximum", "ends_below", "domination"
        numbers = "; ".join("{} {:.3g} [{:.3g}, {:.3g}]".format(name, *row[name]) for name in names)
        say(f"reward {row['class']:6s} interaction {row['interaction']:g}: {numbers}; {row['converged']:.0%} converged")
    for row in summary["meter"]:
        for key in ("left", "lacking"):
            numbers = "; ".join("{} {:.2f} [{:.2f}, {:.2f}]".format(k, *x) for k, x in row[key].items())
            say(f"ρ of μ̂₁ and what is {key}, interaction {row['interaction']:g}: {numbers}")
    for row in summary["policy"]:
        say("policy {class:6s} J best {best:.4f}, median {median:.4f}, worst {worst:.4f}".format(**row))
    for row in summary["critic"]:
        error = "{:.4f} [{:.4f}, {:.4f}]".format(*row["error"])
        say(f"critic {row['class']:6s} {row['policy']:10s} error {error}; floor {row['floor']:.4f}")
    say(f"figure: {out / 'nonlinearity.png'}")
