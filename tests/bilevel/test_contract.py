"""What every algorithm owes on every world: one list of all of them, each compiled once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.run import COUNTS, DIVERGED, RUNNING, RunState, run, start
from bilevel.types import Algorithm
from experiments.settings.config import configure
from experiments.settings.job import Job, resolve

# K inner steps, B trajectories of T steps, segments of H steps, L targets of n transitions in C chains.
K, B, T, H, L, N, C = 2, 4, 5, 2, 1, 8, 4
SIZES = dict(
    num_policy_steps=K,
    batch_size=B,
    rollout_length=T,
    segment_length=H,
    num_targets=L,
    num_transitions=N,
    num_chains=C,
)
TABLES = dict(reward="table", policy="table", critic_model="table")
NETWORKS = dict(reward_hidden=(4,), policy_hidden=(4,), critic_hidden=(4,))
GARNET = dict(states=3, actions=2, successors=2, **TABLES)
BANDIT = dict(contexts=3, actions=2, dimension=2, rollout_length=1, segment_length=1)
WORLDS = {
    "gridworld": NETWORKS,
    "garnet": GARNET,
    "bandit": BANDIT,
    "cartpole": NETWORKS | dict(reward="mlp", critic="td", reuse_labels=False, num_pairs=0),
    "lqr": NETWORKS | dict(policy_hidden=()),
    "gymnax": NETWORKS | dict(environment="Pendulum-v1"),
}
M, R = 2, 3  # batches and full gradients of the first of two stages
STAGES = dict(num_batches=M, num_reward_steps=R)
CASES = [
    *((world, "bilevel", {}) for world in WORLDS),
    ("garnet", "bilevel", dict(estimator="coupled", critic="monte_carlo")),
    ("lqr", "bilevel", dict(estimator="coupled", critic="monte_carlo", policy_optimizer="adam")),
    ("garnet", "bilevel", dict(estimator="independent", critic="exact", objective="excess_brier")),
    ("bandit", "bilevel", dict(estimator="independent", objective="excess_log_likelihood")),
    ("garnet", "bilevel", dict(reuse_labels=True, average_critic=False, reset_critic=True)),
    ("cartpole", "bilevel", dict(reuse_labels=True, objective="excess_brier", critic="monte_carlo")),
    ("garnet", "bilevel", dict(gradients="exact")),
    ("bandit", "bilevel", dict(gradients="exact", objective="excess_brier", reuse_labels=True)),
    ("garnet", "bilevel", dict(hypergradient="closed_form", critic="monte_carlo")),
    ("cartpole", "bilevel", dict(hypergradient="closed_form", critic="monte_carlo", reuse_labels=True)),
    ("garnet", "bilevel", dict(gradients="exact", hypergradient="unrolled", policy_optimizer="adam")),
    ("garnet", "alternating", {}),
    ("cartpole", "alternating", dict(critic="monte_carlo")),
    ("garnet", "alternating", dict(gradients="exact")),
    ("garnet", "two_stage", STAGES),
    ("lqr", "two_stage", STAGES | dict(critic="monte_carlo")),
    ("garnet", "two_stage", STAGES | dict(gradients="exact")),
]
NUM_STEPS = 2
KEYS = jax.random.split(jax.random.key(5), 3)


# Nothing here is timed, and most of the time of these tests would be spent on optimising machine code.
HASTY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class Results(NamedTuple):
    """What two seeds did side by side; every array has a leading axis of two."""

    before: RunState
    after: RunState
    metrics: dict[str, jax.Array]


class Case(NamedTuple):
    """One algorithm on one world."""

    options: dict[str, Any]  # of the configuration, with the algorithm's name
    job: Job
    algorithm: Algorithm
    results: Results  # of KEYS[:2]
    others: Results  # of KEYS[0] and KEYS[2]


def name_of(case) -> str:
    world, algorithm, options = case
    return "-".join([world, algorithm, *(str(value) for value in options.values() if isinstance(value, str))])


def config_of(case):
    world, algorithm, options = case
    if world == "gymnax":
        pytest.importorskip("gymnax")
    ours = SIZES | WORLDS[world] | options
    if algorithm != "bilevel":
        ours.pop("reuse_labels", None)
    return configure(world, algorithm, **ours)


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request) -> Case:
    """Two outer steps of two seeds, twice, from one compilation."""
    config = config_of(request.param)
    job = resolve(config)

    def lane(key):
        algorithm, measure = job.make(job.points[0])
        before = start(algorithm, key, measure)
        return Results(before, *run(algorithm, key, before, NUM_STEPS, measure))

    program = jax.jit(jax.vmap(lane), compiler_options=HASTY)
    options = config.options | {"algorithm": config.algorithm_name}
    return Case(options, job, job.make(job.points[0])[0], program(KEYS[:2]), program(KEYS[::2]))


def made(config):
    """The algorithm and the measurements of a configuration that sweeps nothing."""
    job = resolve(config)
    return job.make(job.points[0])


def specs(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


# States and reports ---------------------------------------------------------------------------------------------------


def test_a_step_keeps_the_state_s_structure_shapes_and_types(case):
    state = jax.eval_shape(case.algorithm.init, KEYS[0])
    moved, _ = jax.eval_shape(case.algorithm.step, KEYS[0], state)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert specs(moved) == specs(state)
    assert specs(jax.tree.map(lambda x: x[0], case.results.after.algorithm)) == specs(state)


def test_a_state_holds_arrays_of_numbers_alone(case):
    for x in jax.tree.leaves(jax.eval_shape(case.algorithm.init, KEYS[0])):
        assert x.size > 0 and x.dtype in (jnp.float32, jnp.int32, jnp.bool_)


def test_every_number_is_finite_and_every_seed_alive(case):
    _, state, metrics = case.results
    for x in jax.tree.leaves((state, metrics)):
        assert np.all(np.isfinite(x))
    np.testing.assert_array_equal(metrics["status"], RUNNING)
    np.testing.assert_array_equal(state.steps, NUM_STEPS)


def test_info_reports_a_gradient_norm_and_exact_costs_as_scalars(case):
    state = jax.eval_shape(case.algorithm.init, KEYS[0])
    _, info = jax.eval_shape(case.algorithm.step, KEYS[0], state)
    assert {"gradient_norm", "upper_objective", *COUNTS} <= info.keys()
    assert all(x.shape == () for x in info.values())
    assert all(info[name].dtype == jnp.int32 for name in COUNTS)
    assert info["gradient_norm"].dtype == jnp.float32
    weighted = case.options["algorithm"] == "bilevel" and case.options["hypergradient"] == "proxy"
    weighted &= case.options["gradients"] == "sampled" and case.options.get("estimator") == "weighted"
    assert ("weight_ess" in info) == weighted


def test_what_is_measured_holds_the_true_return(case):
    metrics = case.results.metrics
    measured = {"true_return", "learned_return", "kl_to_reference", "policy_entropy"}
    assert measured <= metrics.keys()
    assert ("true_score" in metrics) == (case.job.world.mdp is None and case.job.world.env.horizon is not None)
    assert all(x.shape == (2, NUM_STEPS) for x in metrics.values())


def test_the_learned_parameters_are_those_of_the_models(case):
    learned = case.algorithm.params(jax.tree.map(lambda x: x[0], case.results.after.algorithm))
    problem = case.job.problem(case.job.points[0])
    for ours, model in ((learned.reward, problem.reward), (learned.policy, problem.policy)):
        assert specs(ours) == specs(jax.eval_shape(model.init, KEYS[0]))


def test_reward_and_policy_move(case):
    before, after = (jax.vmap(case.algorithm.params)(state.algorithm) for state in case.results[:2])
    for name, old, new in zip(before._fields, before, after, strict=True):
        moved = [np.max(np.abs(x - y)) for x, y in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
        rests = name == "reward" and case.options["algorithm"] == "two_stage"
        assert (max(moved) == 0) == rests, name


def test_a_seed_s_result_does_not_depend_on_its_neighbour(case):
    first, second = (jax.tree.map(lambda x: np.asarray(x[0]), results) for results in (case.results, case.others))
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert x.tobytes() == y.tobytes()
    neighbours = [[x[1].tobytes() for x in jax.tree.leaves(results.after)] for results in (case.results, case.others)]
    without_chance = case.options["gradients"] == "exact" and case.options["reward"] != "mlp"
    assert (neighbours[0] == neighbours[1]) == without_chance


# Costs ----------------------------------------------------------------------------------------------------------------


def costs_by_hand(options) -> dict[str, list[int]]:
    """The counts of the two outer steps, from the algorithms' definitions."""
    t, h = options["rollout_length"], options["segment_length"]
    exact = options["gradients"] == "exact"
    fit, sgd = (L * N, L * N // C) if options["critic"] == "td" and not exact else (0, 0)
    per_return = 0 if exact else B * t + fit  # transitions of one ∇_λ J
    sgd = 0 if exact else sgd
    pairs = 0 if exact else B // 2
    segments = 0 if exact else B * h  # transitions of one batch of pairs
    if options["algorithm"] == "bilevel":
        batches = 1 if options["reuse_labels"] else K + 1  # one an inner step and one for line 7
        rollouts = B * {"weighted": 1, "coupled": 2, "independent": 2}[options["estimator"]]
        # Line 7: G and the difference; or two follow-ups of each segment; or K steps and a product back for each.
        upper = {"proxy": (rollouts, 2), "closed_form": (2 * B, 2), "unrolled": (0, 3 * K + 2)}
        rollouts, evaluations = upper[options["hypergradient"]]
        labels = 2 if options["objective"] == "excess_brier" else 1
        step = {
            "transitions": 2 * K * per_return + batches * segments + (0 if exact else rollouts * t),
            "queries": batches * pairs,
            "labels": batches * pairs * labels,
            # Inner steps: ∇J for λ and for λ′, ∇G for λ′.
            "gradient_evaluations": K * (2 * (1 + sgd) + 1) + evaluations,
        }
        return {name: [count] * NUM_STEPS for name, count in step.items()}
    policy = {"transitions": K * per_return, "queries": 0, "labels": 0, "gradient_evaluations": K * (1 + sgd)}
    if options["algorithm"] == "alternating":
        reward = {"transitions": segments, "queries": pairs, "labels": pairs, "gradient_evaluations": 1}
        return {name: [policy[name] + reward[name]] * NUM_STEPS for name in COUNTS}
    first = {"transitions": M * segments, "queries": M * pairs, "labels": M * pairs, "gradient_evaluations": M * R}
    return {name: [policy[name] + first[name], policy[name]] for name in COUNTS}


def test_costs_are_those_counted_by_hand(case):
    for name, counts in costs_by_hand(case.options).items():
        np.testing.assert_array_equal(case.results.metrics[name], [counts] * 2, err_msg=name)


def test_one_case_counted_with_a_pencil():
    # 2 inner steps: 2 iterates, each 4 rollouts of 5 steps and 8 transitions for the critic: 2 · 2 · 28 = 112.
    # 3 batches of pairs: 3 · 4 segments of 2 steps = 24. Line 7: 4 rollouts of 5 = 20. Together 156.
    options = config_of(("garnet", "bilevel", {})).options | {"algorithm": "bilevel"}
    expected = {"transitions": 156, "queries": 6, "labels": 6, "gradient_evaluations": 2 * (2 * 3 + 1) + 2}
    assert {name: counts[0] for name, counts in costs_by_hand(options).items()} == expected


def test_skipped_queries_are_asked_and_yield_no_label():
    config = config_of(("garnet", "alternating", dict(critic="monte_carlo", skip_below=1e9)))
    algorithm, _ = made(config)
    program = jax.jit(lambda: run(algorithm, KEYS[0], start(algorithm, KEYS[0]), 1), compiler_options=HASTY)
    state, metrics = program()
    assert (int(metrics["queries"][0]), int(metrics["labels"][0])) == (B // 2, 0)
    assert int(state.status) == RUNNING and float(metrics["gradient_norm"][0]) == 0


# Compiled or not, in either precision ---------------------------------------------------------------------------------


def test_a_step_is_the_same_compiled_or_not():
    # Not Adam, which makes a step of full size from a gradient that is zero but for rounding.
    options = dict(
        gradients="exact", num_policy_steps=1, segment_length=1, reward_optimizer="sgd", reward_step_size=0.1
    )
    algorithm, _ = made(config_of(("garnet", "alternating", options)))
    compiled = jax.jit(algorithm.step, compiler_options=HASTY)
    state, _ = compiled(KEYS[0], algorithm.init(KEYS[0]))  # away from zero, where everything is exact
    with jax.disable_jit():
        loose = algorithm.step(KEYS[1], state)
    tight = compiled(KEYS[1], state)
    assert float(tight[1]["policy_gradient_norm"]) > 1e-3
    for x, y in zip(jax.tree.leaves(tight), jax.tree.leaves(loose), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


IN_DOUBLE = [CASES[i] for i in (1, 4, 11, -1)]


@pytest.mark.parametrize("listed", IN_DOUBLE, ids=name_of)
def test_in_double_precision_every_float_is_double(listed, x64):
    algorithm, measure = made(config_of(listed))
    state = jax.eval_shape(algorithm.init, KEYS[0])
    moved, info = jax.eval_shape(algorithm.step, KEYS[0], state)
    measured = jax.eval_shape(measure, KEYS[0], jax.eval_shape(algorithm.params, state))
    for x in jax.tree.leaves((state, moved, info, measured)):
        assert x.dtype in (jnp.float64, jnp.int32, jnp.bool_)


def test_a_problem_that_explodes_ends_as_diverged_and_finite():
    options = dict(gradients="exact", reward_step_size=1e38, reward_optimizer="sgd")
    algorithm, measure = made(config_of(("garnet", "alternating", options)))
    before = start(algorithm, KEYS[0], measure)
    state, metrics = jax.jit(lambda: run(algorithm, KEYS[0], before, 6, measure), compiler_options=HASTY)()
    assert int(state.status) == DIVERGED and int(state.steps) < 6
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.algorithm))
    assert np.sum(metrics["gradient_evaluations"]) == (K + 1) * int(state.steps)
