"""From a configuration to the functions that run: the world, the models, the algorithm, the measurements."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import exact, models, preferences
from bilevel.gradients.critics import TDSizes, exact_critic, monte_carlo_critic, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.lanes import Make
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.measure import exact_measure, sampled_measure
from bilevel.types import Gradients, Hyper, Learned, Model, Problem
from envs.base import World
from experiments.settings.config import Config
from experiments.settings.options import OptionError
from experiments.settings.worlds import load_arrays

FIT_STEPS, FIT_STEP_SIZE = 500, 0.01  # of the reference's supervised fit


class Setup(NamedTuple):
    """What a configuration stands for.

    Attributes:
        world: with its true reward.
        make: hyper -> (algorithm, measure), for `bilevel.lanes.programs`.
        problem: hyper -> Problem.
    """

    world: World
    make: Make
    problem: Callable[[Hyper], Problem]


@contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """The precision that the run asks for, within which it is built and computed."""
    # A GPU rounds products to 10 bits otherwise, which no exact twin would match.
    products = jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "highest")
    with jax.enable_x64(config.precision == "float64"), products:
        yield


def build(config: Config) -> Setup:
    """The functions of a run.

    Raises:
        OptionError: a file does not fit the world, or an exact oracle is out of reach; before anything compiles.
    """
    world = config.world.build()
    check_segments(config, world)
    reward, policy, critic_model = build_models(config, world)
    reference, policy = build_reference(config, world, policy)

    def problem(hyper):
        annotate = preferences.annotator(
            world.reward,
            hyper.discount,
            hyper.rationality,
            config.myopia,
            config.error_rate,
            config.skip_below,
            config.tie_within,
        )
        return Problem(world.env, annotate, reward, policy, reference)

    def make(hyper):
        ours = problem(hyper)
        algorithm = config.algorithm.build(ours, build_gradients(config, world, ours, critic_model, hyper), hyper)
        return algorithm, build_measure(config, world, ours, hyper)

    try:  # trace once, so that whatever does not fit is said before anything compiles
        jax.eval_shape(lambda: make(Hyper())[0].init(jax.random.key(0)))
    except ValueError as error:
        raise OptionError(str(error)) from error
    return Setup(world, make, problem)


def check_segments(config: Config, world: World) -> None:
    """Raises OptionError if a segment, which begins where an episode does, would be longer, or there are too many."""
    if world.env.horizon is not None and config.segment_length > world.env.horizon:
        raise OptionError(
            f"--segment-length is {config.segment_length}; required: at most {world.env.horizon}, the steps of an episode "
            f"of {config.world_name}"
        )
    if config.gradients == "exact":
        _check_number(config.segment_length, world.env.num_states * world.env.num_actions)


def _check_number(length: int, pairs: int) -> None:
    most = exact.MAX_SEGMENTS
    longest = max(fits for fits in range(most.bit_length()) if pairs**fits <= most)
    if pairs > 1 and length > longest:
        instead = f"--segment-length {longest} or less" if longest else "a smaller world"
        raise OptionError(
            f"--segment-length is {length} with --gradients exact, which lists all (S·A)^H segments, here {pairs}^{length}, "
            f"and at most {most}; required: {instead}, or --gradients sampled"
        )


def build_models(config: Config, world: World) -> tuple[Model, Model, Model]:
    """Reward, policy and critic."""
    env = world.env
    states, pairs = models.state_features(world), models.pair_features(world)

    def of_pairs(kind, hidden, bound=None):
        if kind == "table":
            return models.table(env.num_states, env.num_actions)
        return models.linear(*pairs) if kind == "linear" else models.mlp(*pairs, hidden, bound)

    bound = config.reward_bound if np.isfinite(config.reward_bound) else None
    reward = of_pairs(config.reward, config.reward_hidden, bound)
    critic = of_pairs(config.critic_model, config.critic_hidden)
    if env.num_actions is None:
        policy = models.gaussian_policy(*states, env.action_size, config.policy_hidden)
    elif config.policy == "table":
        policy = models.table_policy(env.num_states, env.num_actions)
    else:
        policy = models.mlp_policy(*states, env.num_actions, config.policy_hidden)
    return reward, policy, critic


def build_gradients(config: Config, world: World, problem: Problem, critic_model: Model, hyper: Hyper) -> Gradients:
    """The derivatives, exact or sampled with the chosen critic."""
    objective = getattr(preferences, getattr(config, "objective", "log_likelihood"))
    if config.gradients == "exact":
        return exact_gradients(problem, world.mdp, config.segment_length, hyper, objective)
    sizes = TDSizes(
        config.num_targets, config.num_transitions, config.num_chains, config.average_critic, config.reset_critic
    )
    critic = {
        "td": partial(td_critic, problem, critic_model, sizes, hyper),
        "monte_carlo": partial(monte_carlo_critic, problem, hyper),
        "exact": partial(exact_critic, problem, world.mdp, hyper),
    }[config.critic]()
    estimator = getattr(config, "estimator", "weighted")
    sizes = config.batch_size, config.rollout_length, config.segment_length, estimator, config.num_pairs or None
    return sampled_gradients(problem, critic, SampleSizes(*sizes), hyper, objective)


def build_measure(config: Config, world: World, problem: Problem, hyper: Hyper):
    """Exact measurements on a finite world, from rollouts elsewhere."""
    if world.mdp is not None:
        return exact_measure(problem, world.mdp, hyper)
    length = max(config.rollout_length, world.env.horizon or 0)
    return sampled_measure(problem, world, hyper, config.evaluation_rollouts, length)


# The reference policy -------------------------------------------------------------------------------------------------


def build_reference(config: Config, world: World, policy: Model):
    """π_ref, and the policy model: where the reference was fitted to demonstrations, the policy starts from it."""
    env = world.env
    if config.reference == "uniform":
        return models.uniform_reference(env), policy
    if not config.reference.endswith(".npz"):
        raise OptionError(f"--reference is {config.reference!r}; required: uniform, or the path of an .npz file")
    data = load_arrays(
        "reference", config.reference, ("obs", "action"), "policy" if env.num_states is not None else None
    )
    if "policy" in data:
        return models.given_reference(check_policy(config.reference, data["policy"], env)), policy
    obs, action = check_demonstrations(config.reference, data, world)
    params = fit_policy(policy, jax.random.key(config.seed), obs, action)
    return bind(policy, params), models.started_at(policy, params)


def fit_policy(policy: Model, key, obs, action) -> Any:
    """Parameters of maximum likelihood on demonstrations: supervised fine-tuning, the first stage of RLHF.

    Args:
        policy: the model.
        key: of its initial parameters.
        obs: [N] indices or [N, D].
        action: [N] indices or [N, action_size].
    """
    optimizer = optax.adam(FIT_STEP_SIZE)

    def loss(params):
        return -jnp.mean(jax.vmap(lambda o, a: policy.apply(params, o).log_prob(a))(obs, action))

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = policy.init(key)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(body, carry, length=FIT_STEPS))(
        (params, optimizer.init(params))
    )
    return params


def check_policy(path: str, table: np.ndarray, env) -> jax.Array:
    """The table as an array, or an OptionError for what is wrong with it."""
    shape = (env.num_states, env.num_actions)
    if table.shape != shape:
        raise OptionError(f"--reference {path}: policy has shape {table.shape}; required: {shape}, [S, A]")
    _check_real(path, "policy", table)
    if not np.all(np.isfinite(table)) or table.min() <= 0:
        raise OptionError(f"--reference {path}: policy has the entry {table.min()}; required: probabilities above 0")
    worst = np.abs(table.sum(axis=1) - 1).argmax()
    if abs(table[worst].sum() - 1) > 1e-5:
        raise OptionError(f"--reference {path}: policy[{worst}] sums to {table[worst].sum():.6g}; required: 1")
    return jnp.asarray(table, float)


def check_demonstrations(path: str, data: dict[str, np.ndarray], world: World) -> tuple[jax.Array, jax.Array]:
    """Observations [N, …] and actions [N, …], or an OptionError for what does not fit the world."""
    env = world.env
    spec = jax.eval_shape(lambda key: env.observe(env.init(key)), jax.random.key(0))
    shapes = {"obs": spec.shape, "action": () if env.num_actions else (env.action_size,)}
    limits = {"obs": env.num_states, "action": env.num_actions}
    for name, shape in shapes.items():
        array = data[name]
        if array.ndim != len(shape) + 1 or array.shape[1:] != shape or not 0 < len(array) == len(data["obs"]):
            raise OptionError(
                f"--reference {path}: {name} has shape {array.shape}; required: (N, {', '.join(map(str, shape))}), N ≥ 1"
            )
        _check_real(path, name, array)
        if not np.all(np.isfinite(array)):
            raise OptionError(f"--reference {path}: {name} has entries that are not finite; required: finite numbers")
        if limits[name] and (array.min() < 0 or array.max() >= limits[name] or np.any(array != array.astype(int))):
            bad = array.min() if array.min() < 0 else array.max()
            raise OptionError(
                f"--reference {path}: {name} holds {bad}; required: whole numbers, 0 to {limits[name] - 1}"
            )
    return tuple(jnp.asarray(data[n], jnp.int32 if limits[n] else float) for n in ("obs", "action"))


def _check_real(path: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "fiu":
        raise OptionError(f"--reference {path}: {name} has dtype {array.dtype}; required: real numbers")


# What a report shows of a finite world --------------------------------------------------------------------------------


def tables(setup: Setup, learned: Learned) -> dict[str, np.ndarray]:
    """r_φ and π_λ of every lane, [lanes, S, A], beside the true reward [S, A]; parameters have a leading lane axis."""
    problem = setup.problem(Hyper())
    env = setup.world.env
    rewards = jax.jit(jax.vmap(lambda params: pair_table(env, bind(problem.reward, params))))(learned.reward)
    policies = jax.jit(jax.vmap(lambda params: policy_table(env, bind(problem.policy, params))))(learned.policy)
    truth = np.asarray(setup.world.mdp.reward)
    return {"learned_reward": np.asarray(rewards), "policy": np.asarray(policies), "true_reward": truth}


def baselines(setup: Setup, points: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """What true returns are compared with, on a finite world: the reference policy's, the best with and without KL.

    Those that differ between the points of a sweep are left out.
    """
    env, mdp = setup.world.env, setup.world.mdp

    def at(point):
        hyper = Hyper(**point)
        reference = policy_table(env, setup.problem(hyper).reference)
        truth = exact.lower_level(mdp, mdp.reward, reference, hyper.discount, 0.0)
        values = {
            "reference policy": exact.regularised_return(truth, reference),
            "best policy": exact.best_return(truth),
        }
        if hyper.kl_weight > 0:
            optimum = exact.optimal_policy(truth._replace(kl_weight=hyper.kl_weight)).policy
            values["KL-optimal policy"] = exact.regularised_return(truth, optimum)
        return {name: float(value) for name, value in values.items() if np.isfinite(value)}

    settings = {(point["discount"], point["kl_weight"]): point for point in points}
    found = [at(point) for point in settings.values()]
    same = {name: x for name, x in found[0].items() if all(other.get(name) == x for other in found)}
    return {"true_return": same}
