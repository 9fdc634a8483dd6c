"""The runs of the claim alignment: five methods of RLHF on random MDPs, with exact gradients or with samples, in float64."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import exact, models
from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper, alternating
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf
from bilevel.algorithms.two_stage import TwoStageConfig, TwoStageHyper, two_stage
from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.gradients.critics import TDHyper, TDSizes, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import excess_log_likelihood, log_likelihood
from bilevel.run import DIVERGED, run, start
from bilevel.types import Algorithm, Array, Coefficients, Model, Problem
from envs.base import MDP
from envs.tabular import garnet

NUM_STATES, NUM_ACTIONS, DISCOUNT, LENGTH = 3, 2, 0.9, 2
SIGMA, REWARD_STEP = 0.02, 0.3
# τ, and at most τ w: J's curvature is up to w/(2 (1 − γ)) = 5 w, and ascent needs τ below 2/(5 w).
POLICY_STEP, CURVED_STEP = 0.2, 0.32
MOMENTUM = 0.9  # of the reward
FALL = 100  # outer steps after which a sampled reward step is half its first
WORSE_WEIGHT = 1.0  # w of the worse policy, which is KL-optimal for minus the true reward
TOLERANCE = 1e-3  # of the gradients of a converged run: nats and learned reward, a unit of parameters
TWO_STAGE, WORSE, ALTERNATING = "two-stage", "two-stage, worse data", "alternating"
PAPER, EXCESS = "bilevel, log-likelihood (the paper's)", "bilevel, excess log-likelihood"
METHODS = TWO_STAGE, WORSE, ALTERNATING, PAPER, EXCESS
REALISABLE, MISSPECIFIED, SAMPLED = "table", "state alone", "table, sampled"
CLASSES = REALISABLE, MISSPECIFIED, SAMPLED
SAMPLES = SampleSizes(batch_size=32, rollout_length=40, segment_length=LENGTH, num_pairs=128)  # 0.9^40 = 0.015
CRITIC = TDSizes(num_targets=2, num_transitions=256, num_chains=16)
FIT_BATCHES = 16  # of SAMPLES' pairs, for the two-stage methods' fit


class Sizes(NamedTuple):
    """How much is computed."""

    num_seeds: int = 64  # MDPs, each with a first reward, the same for every method and w; the unit of the intervals
    kl_weights: tuple[float, ...] = (0.2, 0.5, 1.0, 1.5, 3.0)  # w
    num_steps: int = 1000  # T, outer steps
    num_policy_steps: int = 4  # K, inner steps
    num_reward_steps: int = 4000  # of the two-stage methods' fit
    num_sampled_steps: int = 600  # T with sampled gradients
    sampled_kl_weights: tuple[float, ...] = (0.5, 1.5)  # w with sampled gradients
    kinds: tuple[str, ...] = CLASSES  # of `CLASSES`
    methods: tuple[str, ...] = METHODS  # of `METHODS`


class Ends(NamedTuple):
    """Where runs ended; leading axes [w, seed]. Returns are in units of the true reward."""

    regularised: np.ndarray  # [] J of the learned policy under r*, with its KL term
    plain: np.ndarray  # [] the same without
    reference: np.ndarray  # [] J of the reference policy, which has no KL term
    best: np.ndarray  # [2] J of the KL-optimal policy of r*, regularised and plain
    upper: np.ndarray  # [] Φ(φ) with the paper's objective at the learned φ, in nats
    upper_truth: np.ndarray  # [] Φ(r*), in nats
    upper_gradient: np.ndarray  # [] norm of what the reward follows, nats a unit of φ
    lower_gradient: np.ndarray  # [] ‖∇_λ J(λ, φ)‖, learned reward a unit of λ: of the last estimates, if sampled
    labels: np.ndarray  # [] that the run took
    transitions: np.ndarray  # [] that the run took
    diverged: np.ndarray  # [] bool


def relative(ends: Ends, plain: bool = False) -> np.ndarray:
    """Return under r* where 0 is the reference policy's and 1 the KL-optimal policy's of r*, [w, seed]. With the KL term
    nothing exceeds 1; without it (`plain`) policies further from the reference may."""
    reached = ends.plain if plain else ends.regularised
    return (reached - ends.reference) / (ends.best[..., int(plain)] - ends.reference)


def worst_gradient(ends: Ends) -> np.ndarray:
    """The larger of both gradients where a run ended, [w, seed]."""
    return np.maximum(ends.upper_gradient, ends.lower_gradient)


def converged(ends: Ends) -> np.ndarray:
    """Runs that ended with both gradients below `TOLERANCE`, [w, seed] bool."""
    return (worst_gradient(ends) < TOLERANCE) & ~ends.diverged


def weights_of(kind: str, sizes: Sizes) -> tuple[float, ...]:
    """w of a class."""
    return sizes.sampled_kl_weights if kind == SAMPLED else sizes.kl_weights


def climb_all(kind: str, method: str, sizes: Sizes, say) -> Ends:
    """Every run of a method on a class of rewards, one program; in float64."""
    weights = weights_of(kind, sizes)
    shape = len(weights), sizes.num_seeds
    weight, seed = (x.ravel() for x in np.indices(shape))
    with jax.enable_x64(True):
        lanes = jax.random.split(jax.random.key(0), sizes.num_seeds)[seed], jnp.asarray(weights)[weight]
        single = partial(climb, method=method, kind=kind, sizes=sizes)
        program = jax.jit(lambda lanes: jax.lax.map(lambda lane: single(*lane), lanes, batch_size=sizes.num_seeds))
        ends = jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), program(lanes))
    how = f"{ends.labels.mean():.3g} labels each" if kind == SAMPLED else f"{converged(ends).mean():.0%} converged"
    say(f"{kind}, {method}: {len(seed)} runs, {how}")
    return ends


def climb(key: Array, kl_weight: Array, method: str, kind: str, sizes: Sizes) -> Ends:
    """One run, on the MDP and from the reward that the key draws."""
    key_mdp, key_run = jax.random.split(key)
    mdp, coefficients = garnet(key_mdp, NUM_STATES, NUM_ACTIONS), Coefficients(DISCOUNT, kl_weight, 1.0)
    problem = tabular_problem(mdp, coefficients, reward_model(kind))
    objective = excess_log_likelihood if method == EXCESS else log_likelihood
    exactly = exact_gradients(problem, mdp, LENGTH, coefficients, objective)
    gradients = sampled(problem, coefficients, objective) if kind == SAMPLED else exactly
    if method == WORSE:  # J keeps the uniform reference
        problem = tabular_problem(mdp, coefficients, problem.reward, worse_policy(mdp))
    algorithm = build(method, problem, gradients, coefficients, kind, sizes)
    num_steps = sizes.num_sampled_steps if kind == SAMPLED else sizes.num_steps
    state, taken = run(algorithm, key_run, start(algorithm, key_run), num_steps)
    learned, norms = algorithm.params(state.algorithm), state.metrics
    upper_gradient = norms["gradient_norm"]
    if method in (TWO_STAGE, WORSE):  # whose steps report the policy's
        _, slope = exactly.preference_in_reward((), problem.reference, learned.reward)
        upper_gradient = optax.tree.norm(slope)
    reward = pair_table(problem.env, bind(problem.reward, learned.reward))
    policy = policy_table(problem.env, bind(problem.policy, learned.policy))
    return Ends(
        **returns(mdp, coefficients, reward, policy),
        upper_gradient=upper_gradient,
        lower_gradient=norms["policy_gradient_norm"],
        labels=jnp.sum(taken["labels"].astype(float)),
        transitions=jnp.sum(taken["transitions"].astype(float)),
        diverged=state.status == DIVERGED,
    )


def returns(mdp: MDP, coefficients: Coefficients, reward: Array, policy: Array) -> dict[str, Array]:
    """What a learned reward and policy, both [S, A], are worth: the fields of `Ends` that are returns and values of Φ."""
    truth = exact_bilevel(tabular_problem(mdp, coefficients), mdp, LENGTH, coefficients)
    lower = truth.lower(mdp.reward)
    plain = lower._replace(kl_weight=0.0)
    best = truth.optimum(mdp.reward)
    return {
        "regularised": exact.regularised_return(lower, policy),
        "plain": exact.regularised_return(plain, policy),
        "reference": exact.regularised_return(plain, lower.reference),
        "best": jnp.stack([exact.regularised_return(x, best) for x in (lower, plain)]),
        "upper": truth.value(reward),
        "upper_truth": truth.value(mdp.reward),
    }


def reward_model(kind: str) -> Model:
    """The class of rewards, started at independent standard normal parameters."""
    if kind != MISSPECIFIED:
        model = models.table(NUM_STATES, NUM_ACTIONS)
    else:
        model = models.linear(lambda obs, action: jax.nn.one_hot(obs, NUM_STATES, dtype=float), NUM_STATES)

    def init(key):
        zeros = model.init(key)
        return jax.random.normal(key, zeros.shape, zeros.dtype)

    return model._replace(init=init)


def worse_policy(mdp: MDP) -> Array:
    """[S, A], KL-optimal for minus the true reward."""
    about = Coefficients(DISCOUNT, WORSE_WEIGHT, 1.0)
    return exact_bilevel(tabular_problem(mdp, about), mdp, LENGTH, about).optimum(-mdp.reward)


def sampled(problem: Problem, coefficients: Coefficients, objective) -> Gradients:
    """With Algorithm 2 as the critic."""
    critic = td_critic(problem, models.table(NUM_STATES, NUM_ACTIONS), CRITIC, coefficients, TDHyper(0.1, float("inf")))
    return sampled_gradients(problem, critic, SAMPLES, coefficients, objective)


def build(
    method: str, problem: Problem, gradients: Gradients, coefficients: Coefficients, kind: str, sizes: Sizes
) -> Algorithm:
    """The method; `problem.reference` is where the two-stage ones take their pairs."""

    # Not of the policy: overshooting next to a vertex, where its gradient vanishes, it stays there.
    def ascent(step_size):
        return optax.sgd(step_size, momentum=MOMENTUM)

    def falling(step_size):  # noise asks for steps ∝ 1/t
        return ascent(lambda count: step_size / (1 + count / FALL))

    steps, policy_step = sizes.num_policy_steps, jnp.minimum(POLICY_STEP, CURVED_STEP / coefficients.kl_weight)
    online = falling if kind == SAMPLED else ascent
    if method in (PAPER, EXCESS):
        config = BilevelConfig(steps, reward_optimizer=online)
        return bilevel_rlhf(problem, gradients, config, BilevelHyper(SIGMA, policy_step, REWARD_STEP))
    if method == ALTERNATING:
        config = AlternatingConfig(steps, reward_optimizer=online)
        return alternating(problem, gradients, config, AlternatingHyper(policy_step, REWARD_STEP))
    num_batches = FIT_BATCHES if kind == SAMPLED else 1
    config = TwoStageConfig(num_batches, sizes.num_reward_steps, steps, reward_optimizer=ascent)
    return two_stage(problem, gradients, config, TwoStageHyper(policy_step, REWARD_STEP))
