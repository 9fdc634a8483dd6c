"""Exact oracles on finite worlds: values, occupancy, π*(φ), G, Φ, Φ_σ and their gradients, without sampling.

Φ and Φ_σ stand in `bilevel.exact.bilevel`, second derivatives and stationary points in `bilevel.exact.landscape`, the
constants of the convergence theorem in `bilevel.exact.meters`.
"""

from bilevel.exact.penalised import penalised_policy
from bilevel.exact.segments import (
    MAX_SEGMENTS,
    enumerate_segments,
    exact_comparisons,
    preference_objective,
    segment_law,
    segment_returns,
)
from bilevel.exact.values import (
    LowerLevel,
    Solution,
    action_values,
    advantages,
    best_return,
    divergence,
    lower_level,
    occupancy,
    optimal_policy,
    regularised_return,
    regularised_reward,
    require_kl,
    state_values,
)

__all__ = [
    "MAX_SEGMENTS",
    "LowerLevel",
    "Solution",
    "action_values",
    "advantages",
    "best_return",
    "divergence",
    "enumerate_segments",
    "exact_comparisons",
    "lower_level",
    "occupancy",
    "optimal_policy",
    "penalised_policy",
    "preference_objective",
    "regularised_return",
    "regularised_reward",
    "require_kl",
    "segment_law",
    "segment_returns",
    "state_values",
]
