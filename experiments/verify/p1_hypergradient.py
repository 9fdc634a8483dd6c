"""P1.hypergradient: three formulas for ∇Φ, and the limit of a fourth, are the gradient of the exact Φ."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from bilevel import exact, models
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.hypergradients import Construct, closed_form, dense_elimination, implicit, unrolled
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import annotator, log_likelihood
from bilevel.types import Array, Gradients, Hyper, Params, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular
from experiments.verify.claims import Budget, Claim, Interval, Margin, Measurement

SHAPES = ((2, 2, 3), (4, 2, 2), (3, 4, 2), (6, 3, 1))  # S, A, H
UNROLLED = (100, 1000, 10_000)  # K
WAYS: dict[str, Construct] = {
    "closed form": closed_form,
    "implicit, conjugate gradients": implicit,
    "implicit, dense": partial(implicit, solver=dense_elimination()),
} | {f"unrolled, K = {count}": partial(unrolled, num_steps=count) for count in UNROLLED}
PLANTED = {"": (0.0, 0.0), "1/w": (1.0, 0.0), "H": (0.0, 1.0)}  # powers of w, 1/H that the policy's response is off by
DECIDING = [name for name in WAYS if not name.startswith("unrolled")] + [f"unrolled, K = {UNROLLED[-1]}"]
SMALLER = 0.1  # times w: for the ways that need no ascent, whose steps the curvature at a small w bounds
SMALL = {name: f"{name}, {SMALLER:g} w" for name in WAYS if not name.startswith("unrolled")}
DECIDING = [*DECIDING, *SMALL.values()]
STEP = 1e-5  # of the central differences


def setting(key: Array, scale: Array, shape: tuple[int, int, int]) -> tuple[Problem, MDP, Hyper, Params]:
    """A random problem with a network for r_φ, its hyperparameters and φ; w in scale [1, 2], γ in [½, 9/10], κ in [½, 3/2].

    ρ and P are mixed with a tenth of the uniform law, so that every state is visited: an unrolled ascent would need too
    many steps in the logits of one that hardly is.
    """
    num_states, num_actions, _ = shape
    key_mdp, key_features, key_reference, key_reward, key_hyper = jax.random.split(key, 5)
    mdp = garnet(key_mdp, num_states, num_actions)
    initial, transition = (0.9 * x + 0.1 / num_states for x in (mdp.initial, mdp.transition))
    mdp = mdp._replace(initial=initial, transition=transition)
    features = jax.random.normal(key_features, (num_states, num_actions, 3))
    reward = models.mlp(lambda s, a: features[s, a], 3, (2,))
    point, unravel = ravel_pytree(reward.init(key_reward))
    params = unravel(point + 0.5 * jax.random.normal(key_reward, point.shape))
    reference = jax.nn.softmax(0.5 * jax.random.normal(key_reference, (num_states, num_actions)))
    noise = jax.random.uniform(key_hyper, (3,))
    hyper = Hyper(kl_weight=scale * (1.0 + noise[0]), discount=0.5 + 0.4 * noise[1], rationality=0.5 + noise[2])
    # The curvature of J at its maximum is at most w/(2 (1 − γ)).
    hyper = hyper._replace(policy_step_size=(1 - hyper.discount) / hyper.kl_weight)
    world = tabular(mdp)
    annotate = annotator(world.reward, hyper.discount, hyper.rationality)
    policy = models.table_policy(num_states, num_actions)
    return Problem(world.env, annotate, reward, policy, models.given_reference(reference)), mdp, hyper, params


def misses(key: Array, powers: Array, scale: Array, shape: tuple[int, int, int]) -> dict[str, Array]:
    """‖∇Φ by each way − ∇Φ by central differences‖ / ‖the latter‖, on the instance of that key."""
    problem, mdp, hyper, params = setting(key, scale, shape)
    point, unravel = ravel_pytree(params)
    reference = policy_table(problem.env, problem.reference)
    segments = exact.enumerate_segments(*shape)
    comparisons = exact.exact_comparisons(problem.annotate, segments)

    def optimum(reward):
        return exact.optimal_policy(exact.lower_level(mdp, reward, reference, hyper.discount, hyper.kl_weight)).policy

    def whole(point):  # Φ
        reward = pair_table(problem.env, bind(problem.reward, unravel(point)))
        return exact.preference_objective(
            mdp, optimum(reward), reward, segments, comparisons, log_likelihood, hyper.discount, hyper.rationality
        )

    offsets = STEP * jnp.eye(len(point))
    expected = jax.vmap(lambda offset: (whole(point + offset) - whole(point - offset)) / (2 * STEP))(offsets)
    best = jnp.log(optimum(pair_table(problem.env, bind(problem.reward, params))))
    factor = hyper.kl_weight ** powers[0] / shape[2] ** powers[1]
    gradients = plant(exact_gradients(problem, mdp, shape[2], hyper), factor)

    def miss(name, construct):
        # The unrolled ascents have to find the optimum.
        start = jnp.zeros_like(best) if name.startswith("unrolled") else best
        found = construct(problem, gradients, hyper).estimate(key, (), params, start, start)
        found = ravel_pytree(found.direct)[0] + ravel_pytree(found.implicit)[0]
        return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)

    return {name: miss(name, construct) for name, construct in WAYS.items()}


def plant(gradients: Gradients, factor) -> Gradients:
    """The same derivatives with those that carry the policy's response times a factor; 1 leaves them right."""

    def scaled(function):
        return lambda *inputs: jax.tree.map(lambda x: factor * x, function(*inputs))

    return gradients._replace(
        preference_in_policy=scaled(gradients.preference_in_policy),
        preference_through_policy=scaled(gradients.preference_through_policy),
    )


@cache
def program(shape: tuple[int, int, int]):
    """`misses` of many keys, compiled."""
    return jax.jit(jax.vmap(partial(misses, shape=shape), (0, None, None)))


def errors(each: int, planted: str = "", shapes=SHAPES) -> dict[str, np.ndarray]:
    """`misses` on `each` instances of every shape, and those of `SMALL` at smaller w, [instances] each, in float64."""
    with jax.enable_x64(True):
        keys, powers = jax.random.split(jax.random.key(0), each), jnp.array(PLANTED[planted])
        found = [program(shape)(keys, powers, 1.0) for shape in shapes]
        small = [program(shape)(keys, powers, SMALLER) for shape in shapes]
    whole = {name: np.concatenate([x[name] for x in found]) for name in WAYS}
    return whole | {theirs: np.concatenate([x[name] for x in small]) for name, theirs in SMALL.items()}


def draw(found: dict[str, np.ndarray]) -> Figure:
    """A mark for each instance, and the margin."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        axes.plot(values, np.full(len(values), place), "o", color="#0072B2", alpha=0.5, markersize=5)
    margin = CLAIM.margins[DECIDING[0]].high
    axes.axvline(margin, color="#D55E00", linestyle=":", label=f"margin, {margin:g}")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="relative difference to central differences of the exact Φ")
    axes.set_title(f"∇Φ on {len(found[DECIDING[0]])} random instances", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    return figure


def measure(budget: Budget, planted: str = "") -> Measurement:
    """The largest difference of each way over all instances.

    Args:
        budget: quick: 5 instances of one shape, not 20 of four; each shape is a program of many ways.
        planted: a factor to leave out of the policy's response, "1/w" or "H"; "": none.
    """
    found = errors(5, planted, SHAPES[:1] if budget.quick else SHAPES)
    numbers = {name: Interval(*[float(np.max(values))] * 3) for name, values in found.items()}
    notes = (
        f"instances have w in [1, 2], and, without the unrolled ascents, w in [{SMALLER:g}, {2 * SMALLER:g}]; ρ and P are "
        "mixed with a tenth of the uniform law",
    )
    return Measurement(numbers, {}, draw(found), notes)


CLAIM = Claim(
    statement="The closed form of the hypergradient, implicit differentiation and an unrolled ascent in its limit are ∇Φ.",
    source="derived, after HPGD (2406.01575) and PARL (2308.02585)",
    prediction="equal, at the optimum of a full table with w > 0, to central differences of the exact Φ; looked at for w in "
    f"[1, 2], and in [{SMALLER:g}, {2 * SMALLER:g}] where no ascent is unrolled",
    exact=True,
    margins={name: Margin(0, 1e-5) for name in DECIDING},
    minutes=(0.7, 3),
    measure=measure,
)
