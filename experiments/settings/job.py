"""A configuration resolved, once: the world, the functions that run, the points of the sweep, devices and chunks.

What is handed down a run is a `Job`; nothing below it looks at options to find out what they mean.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import exact, models, preferences
from bilevel.gradients.critics import TDHyper, TDSizes, exact_critic, monte_carlo_critic, td_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes, sampled_gradients
from bilevel.gradients.types import Critic, Gradients
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.measure import exact_measure, sampled_measure
from bilevel.preferences import Teacher
from bilevel.run import Measure, Stopping
from bilevel.types import Algorithm, Coefficients, Learned, Model, Problem
from envs.base import World
from experiments.settings.algorithms import ALGORITHMS, Parts
from experiments.settings.config import Config, sweep
from experiments.settings.options import OptionError, pick
from experiments.settings.reference import build_reference

Point = dict[str, Any]  # the value, or array, of every real-valued hyperparameter, by the name of its option


class Job(NamedTuple):
    """What a configuration stands for."""

    config: Config
    world: World  # with its true reward
    swept: tuple[str, ...]  # names of the hyperparameters that have several values
    points: tuple[Point, ...]  # of the sweep, each with the value of every hyperparameter
    devices: tuple[jax.Device, ...]  # that share the lanes
    stopping: Stopping  # when a seed has converged
    make: Callable[[Point], tuple[Algorithm, Measure]]  # inside the traced function, for `bilevel.lanes.programs`
    problem: Callable[[Point], Problem]

    def chunk(self, done: int) -> int:
        """Outer steps a call, after `done`; with `all`, those that are left."""
        run = self.config.run
        return max(run.steps - done, 1) if run.chunk == "all" else min(int(run.chunk), run.steps)


@contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """The precision that the run asks for, within which it is resolved and computed."""
    # A GPU rounds products to 10 bits otherwise, which no exact twin would match.
    products = jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "highest")
    with jax.enable_x64(config.run.precision == "float64"), products:
        yield


def resolve(config: Config) -> Job:
    """The job of a configuration. Raises OptionError where a file does not fit the world, an exact oracle is out of reach,
    or there are too few devices; before anything compiles."""
    world, options, entry = config.world.build(), config.options, ALGORITHMS[config.algorithm_name]
    devices = choose_devices(config)
    check_segments(config, world)
    reward, policy = reward_model(config, world), policy_model(config, world)
    reference, policy = build_reference(options["reference"], config.run.seed, world, policy)
    teacher = config.named.get("annotator", Teacher())

    def problem(point):
        numbers = pick(Coefficients, point)
        annotate = preferences.annotator(world.reward, numbers.discount, numbers.rationality, teacher)
        made = Problem(world.env, annotate, reward, policy, reference)
        return made if entry.policy is None else made._replace(policy=entry.policy(made, numbers))

    def make(point):
        made, numbers = problem(point), pick(Coefficients, point)
        gradients = partial(build_gradients, config, world, made, point)
        algorithm = entry.make(Parts(made, gradients), config.algorithm, pick(entry.hyper, point))
        return algorithm, build_measure(config, world, made, numbers)

    names, points = sweep(config)
    try:  # trace once, so that whatever does not fit is said before anything compiles
        jax.eval_shape(lambda: make(points[0])[0].init(jax.random.key(0)))
    except ValueError as error:
        raise OptionError(str(error)) from error
    stopping = Stopping(config.run.gradient_tolerance, config.run.patience)
    return Job(config, world, tuple(names), tuple(points), devices, stopping, make, problem)


def choose_devices(config: Config) -> tuple[jax.Device, ...]:
    """The devices that share the lanes."""
    devices = jax.devices()
    if config.run.devices and jax.process_count() > 1:
        raise OptionError(
            f"--devices is {config.run.devices} in a run of several processes; required: 0, all that they have"
        )
    if config.run.devices > len(devices):
        raise OptionError(
            f"--devices is {config.run.devices}; this machine has {len(devices)}; ask for at most that many"
        )
    if getattr(config.world, "lapack", False) and devices[0].platform == "cpu" and jax.local_device_count() > 1:
        # LAPACK's batched calls wait for threads that the other devices of the process may hold for ever.
        if config.run.devices > 1 or jax.process_count() > 1:
            how = "JAX_NUM_CPU_DEVICES=1 in each process" if jax.process_count() > 1 else "--devices 1"
            raise OptionError(
                f"--world {config.world_name} can stand still on several CPU devices of one process; required: one, by {how}"
            )
        return tuple(devices[:1])
    return tuple(devices[: config.run.devices or None])


def check_segments(config: Config, world: World) -> None:
    """Raises OptionError if a segment, which begins where an episode does, would be longer, or there are too many."""
    options = config.options
    length = options.get("segment_length", 1)
    if world.env.horizon is not None and length > world.env.horizon:
        raise OptionError(
            f"--segment-length is {length}; required: at most {world.env.horizon}, the steps of an episode "
            f"of {config.world_name}"
        )
    if options.get("gradients") == "exact":
        _check_number(length, world.env.num_states * world.env.num_actions)


def _check_number(length: int, pairs: int) -> None:
    most = exact.MAX_SEGMENTS
    longest = max(fits for fits in range(most.bit_length()) if pairs**fits <= most)
    if pairs > 1 and length > longest:
        instead = f"--segment-length {longest} or less" if longest else "a smaller world"
        raise OptionError(
            f"--segment-length is {length} with --gradients exact, which lists all (S·A)^H segments, here {pairs}^{length}, "
            f"and at most {most}; required: {instead}, or --gradients sampled"
        )


def reward_model(config: Config, world: World) -> Model | None:
    """r_φ; None where the algorithm fits no reward."""
    options = config.named.get("reward")
    if options is None:
        return None
    bound = options.reward_bound if np.isfinite(options.reward_bound) else None
    return pair_model(world, options.reward, options.reward_hidden, bound)


def pair_model(world: World, kind: str, hidden: tuple[int, ...], bound: float | None = None) -> Model:
    """A function of observation and action of that kind: a table, linear in the world's features, or a network."""
    if kind == "table":
        return models.table(world.env.num_states, world.env.num_actions)
    features = models.pair_features(world)
    return models.linear(*features) if kind == "linear" else models.mlp(*features, hidden, bound)


def policy_model(config: Config, world: World) -> Model | None:
    """π_λ; None where the algorithm brings its own."""
    env, options = world.env, config.named.get("policy")
    if options is None:
        return None
    if env.num_actions is None:
        return models.gaussian_policy(*models.state_features(world), env.action_size, options.policy_hidden)
    if options.policy == "table":
        return models.table_policy(env.num_states, env.num_actions)
    return models.mlp_policy(*models.state_features(world), env.num_actions, options.policy_hidden)


def build_gradients(
    config: Config,
    world: World,
    problem: Problem,
    point: Point,
    objective: preferences.Objective = preferences.log_likelihood,
    estimator: str = "weighted",
) -> Gradients:
    """The derivatives, exact or sampled with the chosen critic, for that upper objective and estimator of line 7."""
    options, coefficients = config.options, pick(Coefficients, point)
    if options["gradients"] == "exact":
        return exact_gradients(problem, world.mdp, options["segment_length"], coefficients, objective)
    sizes = pick(SampleSizes, options | {"estimator": estimator})
    return sampled_gradients(problem, build_critic(config, world, problem, point), sizes, coefficients, objective)


def build_critic(config: Config, world: World, problem: Problem, point: Point) -> Critic:
    """The chosen estimator of advantages."""
    options, coefficients = config.named["critic"], pick(Coefficients, point)
    if options.critic == "monte_carlo":
        return monte_carlo_critic(problem, coefficients)
    if options.critic == "exact":
        return exact_critic(problem, world.mdp, coefficients)
    model = pair_model(world, options.critic_model, options.critic_hidden)
    return td_critic(problem, model, pick(TDSizes, config.options), coefficients, pick(TDHyper, point))


def build_measure(config: Config, world: World, problem: Problem, coefficients: Coefficients) -> Measure:
    """Exact measurements on a finite world, from rollouts elsewhere."""
    if world.mdp is not None:
        return exact_measure(problem, world.mdp, coefficients)
    length = max(config.options.get("rollout_length", 1), world.env.horizon or 0)
    return sampled_measure(problem, world, coefficients, config.run.evaluation_rollouts, length)


def tables(job: Job, learned: Learned) -> dict[str, np.ndarray]:
    """π_λ, and r_φ if one is learned, of every lane [lanes, S, A], beside the true reward [S, A]. Parameters have a
    leading lane axis."""
    problem, env = job.problem(job.points[0]), job.world.env
    found = {"true_reward": np.asarray(job.world.mdp.reward)}
    policies = jax.jit(jax.vmap(lambda params: policy_table(env, bind(problem.policy, params))))
    found["policy"] = np.asarray(policies(learned.policy))
    if learned.reward is not None:
        rewards = jax.jit(jax.vmap(lambda params: pair_table(env, bind(problem.reward, params))))
        found["learned_reward"] = np.asarray(rewards(learned.reward))
    return found


def baselines(job: Job) -> dict[str, dict[str, float]]:
    """What true returns are compared with, on a finite world: the reference policy's, the best with and without KL.
    Those that differ between the points of a sweep are left out."""
    env, mdp = job.world.env, job.world.mdp

    def at(point):
        numbers = pick(Coefficients, point)
        reference = policy_table(env, job.problem(point).reference)
        truth = exact.lower_level(mdp, mdp.reward, reference, numbers.discount, 0.0)
        values = {
            "reference policy": exact.regularised_return(truth, reference),
            "best policy": exact.best_return(truth),
        }
        if numbers.kl_weight > 0:
            optimum = exact.optimal_policy(truth._replace(kl_weight=numbers.kl_weight)).policy
            values["KL-optimal policy"] = exact.regularised_return(truth, optimum)
        return {name: float(value) for name, value in values.items() if np.isfinite(value)}

    settings = {(point["discount"], point["kl_weight"]): point for point in job.points}
    found = [at(point) for point in settings.values()]
    same = {name: x for name, x in found[0].items() if all(other.get(name) == x for other in found)}
    return {"true_return": same}
