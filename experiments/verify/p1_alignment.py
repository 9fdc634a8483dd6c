"""P1.alignment: what each method is worth under the true reward, beside the objective that the paper maximises."""

import numpy as np

from experiments.report.summary import share
from experiments.studies import alignment
from experiments.studies.alignment import ABOVE, ALTERNATING, GAIN, PAPER, REALISABLE, SAMPLED
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement

QUICK = alignment.Sizes(num_seeds=16, kl_weights=(0.5, 1.5), num_steps=300, num_reward_steps=1000)
QUICK_CLASSES = (REALISABLE,)
QUICK_METHODS = ALTERNATING, PAPER, alignment.EXCESS
FEWEST = 60  # instances of which a mean is judged: of fewer, failures on a twentieth are too easily missed by all
SMALL_WEIGHT = 0.5  # w at which the paper's objective is judged
LABELS = {
    f"{GAIN}_mean": "mean share of the gain",
    f"{GAIN}_interquartile_mean": "interquartile mean share of the gain",
    "below_reference": "share of runs below the reference",
    "converged": "share of runs converged",
    f"{ABOVE}_mean": "mean Φ(φ) − Φ(r*)",
    f"{ABOVE}_interquartile_mean": "interquartile mean Φ(φ) − Φ(r*)",
}


def name(key: str, kind: str, method: str, kl_weight: float) -> str:
    """What the number of a row under that key is called."""
    return f"{LABELS[key]}, {kind}, {method}, w = {kl_weight:g}"


MARGINS = {
    name(f"{GAIN}_mean", REALISABLE, ALTERNATING, kl_weight): Margin(0.99, INF)
    for kl_weight in alignment.Sizes().kl_weights
} | {
    name(f"{GAIN}_mean", REALISABLE, PAPER, SMALL_WEIGHT): Margin(-INF, 0.5),
    name(f"{ABOVE}_mean", REALISABLE, PAPER, SMALL_WEIGHT): Margin(0.0, INF),
}


def measure(budget: Budget, sizes: alignment.Sizes | None = None) -> Measurement:
    """See `experiments.studies.alignment`; `sizes` in place of the budget's."""
    sizes = sizes or (QUICK if budget.quick else alignment.Sizes())
    kinds = QUICK_CLASSES if budget.quick else tuple(alignment.CLASSES)
    methods = QUICK_METHODS if budget.quick else tuple(alignment.METHODS)
    found = alignment.study(sizes, budget.say, methods, kinds, budget.folder)
    rows = alignment.summarise(found, sizes)
    numbers = {
        name(key, row["class"], row["method"], row["kl_weight"]): Interval(*row[key], undecided(row, sizes))
        for row in rows
        for key in LABELS
        if (row["class"], key) != (SAMPLED, "converged")  # the gradients' estimates do not tell
    }
    labels = [f"{row['method']} {row['labels']:,.0f}" for row in rows if row["class"] == SAMPLED]
    notes = (
        *(in_words(row, sizes) for row in rows if name(f"{GAIN}_mean", *place(row)) in MARGINS),
        "the gain is the KL-optimal policy's over the reference policy's, under the true reward with the KL term; means are "
        "judged, over random MDPs, since a few failures move them: an interquartile mean leaves out a quarter on each side",
        f"no interval knows of failures that no run showed: {sizes.num_seeds} MDPs may all miss one that "
        f"{unseen(sizes.num_seeds):.1%} of MDPs would show",
        f"converged: both exact gradients below {alignment.TOLERANCE:g}; Φ is in nats",
        "labels a run with sampled gradients: " + (", ".join(dict.fromkeys(labels)) or "none are run"),
    )
    runs = sum(ends.regularised.size for ends in found.values())
    transitions = sum(float(ends.transitions.sum()) for ends in found.values())
    return Measurement(numbers, {"runs": runs, "transitions": transitions}, alignment.draw(found, sizes), notes)


def place(row: dict) -> tuple[str, str, float]:
    """What a row is of: class, method and w."""
    return row["class"], row["method"], row["kl_weight"]


def undecided(row: dict, sizes: alignment.Sizes) -> str:
    """Why a row's numbers decide nothing, in words; "" if they may."""
    if row["without_return"]:
        return f"{row['without_return']} of {sizes.num_seeds} runs ended without a return and are left out"
    return f"{sizes.num_seeds} MDPs are too few; {FEWEST} are needed" if sizes.num_seeds < FEWEST else ""


def unseen(num: int) -> float:
    """The most, at 97.5 %, that a failure's share of all instances is which none of `num` shows."""
    return float(share(np.zeros(num, bool)).high)


def in_words(row: dict, sizes: alignment.Sizes) -> str:
    """The numbers of a row that is judged, side by side."""
    kind, method, kl_weight = place(row)
    count = round(row["below_reference"][0] * sizes.num_seeds)
    return (
        f"{kind}, {method}, w = {kl_weight:g}: share of the gain {row[f'{GAIN}_mean'][0]:.3f} in the mean, "
        f"{row[f'{GAIN}_interquartile_mean'][0]:.3f} in the interquartile mean; {count} of {sizes.num_seeds} runs below the "
        f"reference, {row['converged'][0]:.0%} converged; Φ(φ) − Φ(r*) {row[f'{ABOVE}_mean'][0]:.2g} in the mean, "
        f"{row[f'{ABOVE}_interquartile_mean'][0]:.2g} in the interquartile mean"
    )


CLAIM = Claim(
    statement="What bilevel RLHF maximises, Φ, is a proxy of the true return: where a class of rewards holds the true one, "
    "alternating reaches the KL-optimal return, and Algorithm 1 at a small w much less, at a Φ above the true reward's.",
    source="2410.15610, its objective; the comparison is ours",
    prediction="in the mean over random MDPs, exact gradients, a table: alternating's share of the attainable gain at least "
    f"0.99 at every w; at w = {SMALL_WEIGHT:g} Algorithm 1's below 0.5, and its Φ above Φ(r*)",
    exact=False,
    margins=MARGINS,
    minutes=(0.6, 8),
    measure=measure,
)
