"""An algorithm is added by one entry: what it names it gets, and nothing else shows in help, options, sweep or report."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.algorithms.bilevel_rlhf import line_7
from bilevel.ascent import Level, Optimizer, ascend
from bilevel.gradients.hypergradients import closed_form, implicit, naive, unrolled
from bilevel.lookup import over_observations
from bilevel.models import Categorical
from bilevel.ranges import Count, Positive, check
from bilevel.rollout import rollouts
from bilevel.types import Algorithm, Array, Coefficients, Cost, Learned, Model, Problem
from experiments import configure, load_params, load_run, train
from experiments.__main__ import main
from experiments.settings import algorithms
from experiments.settings.algorithms import ALGORITHMS, HYPERGRADIENTS, Entry, optimizer, static
from experiments.settings.config import as_dict, sweep
from experiments.settings.job import resolve
from experiments.settings.options import OptionError, part

# A small algorithm that takes the problem alone: a policy that follows the labels of its own pairs, without a reward -------


class DuelsConfig(NamedTuple):
    """Counts and the optimizer of the duels."""

    num_duels: Count = 16
    """Pairs of one-step segments an outer step."""
    policy_optimizer: Optimizer = optax.sgd


class DuelsHyper(NamedTuple):
    """The two real numbers of the duels."""

    duel_step_size: Positive = 0.5
    """Step size of the policy."""
    shrinkage: Positive = 0.01
    """Weight of the pull towards zero logits."""


class DuelsState(NamedTuple):
    """The policy, and how many duels were won by the first."""

    policy: Level
    won: Array


def duels(problem: Problem, config: DuelsConfig, hyper: DuelsHyper) -> Algorithm:
    """Winners' actions become likelier: (y − ½) (∇ log π(a⁰) − ∇ log π(a¹)), averaged over pairs of one step."""
    check(config)
    optimizer = config.policy_optimizer(hyper.duel_step_size)
    cost = Cost(2 * config.num_duels, config.num_duels, 1)

    def init(key):
        params = problem.policy.init(key)
        return DuelsState(Level(params, optimizer.init(params)), jnp.int32(0))

    def step(key, state):
        key_pairs, key_labels = jax.random.split(key)
        behave = lambda obs: problem.policy.apply(state.policy.params, obs)  # noqa: E731
        paths = rollouts(problem.env, behave, key_pairs, 2 * config.num_duels, 1)
        first, second = (jax.tree.map(lambda x, i=i: x[i::2], paths) for i in (0, 1))
        labels = jax.vmap(problem.annotate)(jax.random.split(key_labels, config.num_duels), first, second).label

        def gain(params):
            law = over_observations(problem.env, lambda obs: problem.policy.apply(params, obs))
            scores = [law(x.obs).log_prob(x.action)[:, 0] for x in (first, second)]
            pull = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
            return jnp.mean((labels - 0.5) * (scores[0] - scores[1])) - hyper.shrinkage * pull

        policy = ascend(optimizer, state.policy, jax.grad(gain)(state.policy.params))
        info = {"labels": jnp.int32(config.num_duels), **cost.as_info()}
        return DuelsState(policy, state.won + jnp.sum(labels > 0.5, dtype=jnp.int32)), info

    return Algorithm(init, step, lambda state: Learned(None, state.policy.params))


DuelsOptions = part("DuelsOptions", "Duels: a policy learned from preferences alone.", static(DuelsConfig, DuelsHyper))


def make_duels(parts, chosen, hyper):
    config = DuelsConfig(chosen.num_duels, optimizer("policy_optimizer", chosen.policy_optimizer))
    return duels(parts.problem, config, hyper)


DUELS = Entry(DuelsOptions, DuelsHyper, ("policy", "annotator"), make_duels)


@pytest.fixture
def with_duels(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "duels", DUELS)


TINY = dict(world="bandit", algorithm="duels", contexts=3, actions=2, dimension=2, seeds=3, steps=30, seed=1)


def test_its_help_shows_what_it_named_and_no_critic(with_duels, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--world", "bandit", "--algorithm", "duels", "--help"])
    assert end.value.code in (0, None)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.lstrip("│| ").startswith("--")]
    shown = " ".join(shown)
    for flag in ("--num-duels", "--duel-step-size", "--shrinkage", "--policy-hidden", "--error-rate", "--discount"):
        assert flag in shown
    for flag in ("critic", "--sigma", "--reward", "--batch-size", "--gradients", "--objective", "--segment-length"):
        assert flag not in shown


def test_its_configuration_and_sweep_hold_its_own_numbers_alone(with_duels):
    config = configure(**TINY, shrinkage=(0.01, 0.1))
    assert {"shrinkage", "duel_step_size", "num_duels", "myopia"} <= as_dict(config).keys()
    assert not {"sigma", "critic", "num_chains", "batch_size", "reward", "estimator"} & as_dict(config).keys()
    names, points = sweep(config)
    assert names == ["shrinkage"]
    assert points[1] == dict(shrinkage=0.1, duel_step_size=0.5, discount=0.0, kl_weight=0.5, rationality=1.0)
    with pytest.raises(OptionError, match="duels on bandit has no option --sigma; it is one of --algorithm bilevel"):
        configure(**TINY, sigma=0.1)


def test_it_runs_is_measured_without_a_reward_saved_and_resumed(with_duels, tmp_path, quick_runs):
    options = dict(TINY, duel_step_size=2.0, shrinkage=(1e-3, 1e-2))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(configure(**options), whole)
    run = load_run(whole)
    assert run.sizes == {"hyper": 2, "seed": 3, "step": 30}
    assert "learned_return" not in run and "gradient_norm" not in run and "true_return" in run
    assert float((run.true_return[:, :, -1] - run.true_return[:, :, 0]).mean()) > 0.05
    learned = load_params(whole, seed=2)
    assert learned.reward is None and np.shape(learned.policy) == (3, 2)
    train(configure(**(options | {"steps": 10})), parts)
    train(configure(**options), parts)
    again = load_run(parts)
    for name in run.data_vars:
        assert np.array_equal(run[name], again[name]), name
    told = json.loads((whole / "summary.json").read_text())
    assert "learned_return" not in json.dumps(told)


def test_an_algorithm_may_bring_a_policy_of_its_own(monkeypatch):
    # The Gibbs policy of a table of rewards: π(a|s) ∝ π_ref exp(r/w), whose parameters are the rewards.
    def gibbs(problem: Problem, coefficients: Coefficients) -> Model:
        def apply(params, obs):
            return Categorical(problem.reference(obs).logits + params[obs] / coefficients.kl_weight)

        return Model(lambda key: jnp.zeros((3, 2)), apply)

    entry = Entry(DuelsOptions, DuelsHyper, ("annotator",), make_duels, policy=gibbs)
    monkeypatch.setitem(ALGORITHMS, "gibbs", entry)
    config = configure(**(TINY | {"algorithm": "gibbs", "kl_weight": 0.5}))
    assert "policy_hidden" not in config.options
    job = resolve(config)
    law = job.problem(job.points[0]).policy.apply(jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), jnp.int32(0))
    np.testing.assert_allclose(law.probs, [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))], rtol=1e-6)


def test_a_policy_of_its_own_is_not_fitted_to_demonstrations(monkeypatch, tmp_path):
    entry = Entry(DuelsOptions, DuelsHyper, ("annotator",), make_duels, policy=lambda problem, coefficients: None)
    monkeypatch.setitem(ALGORITHMS, "own", entry)
    np.savez(tmp_path / "shown.npz", obs=np.zeros(3, int), action=np.zeros(3, int))
    config = configure(**(TINY | {"algorithm": "own", "reference": str(tmp_path / "shown.npz")}))
    with pytest.raises(OptionError, match="holds demonstrations, and the algorithm brings a policy of its own"):
        resolve(config)


# Names ----------------------------------------------------------------------------------------------------------------


def test_the_names_of_choices_are_those_of_the_options():
    assert list(HYPERGRADIENTS) == ["proxy", "naive", "closed_form", "implicit", "unrolled"]
    assert [HYPERGRADIENTS[x] for x in ("proxy", "naive", "closed_form")] == [line_7, naive, closed_form]
    assert {HYPERGRADIENTS["implicit"], HYPERGRADIENTS["unrolled"]} == {implicit, unrolled}
    assert algorithms.OBJECTIVES.keys() == {"log_likelihood", "excess_log_likelihood", "excess_brier"}


def test_an_optimizer_by_name_and_arguments_takes_the_step_it_says():
    # Momentum 0.9 from rest: steps of η g, then η (1.9 g).
    made = optimizer("policy_optimizer", "sgd:momentum=0.9")(0.1)
    state, moved = made.init(jnp.zeros(1)), []
    for _ in range(2):
        update, state = made.update(jnp.ones(1), state)
        moved.append(float(update[0]))
    np.testing.assert_allclose(moved, [-0.1, -0.19], rtol=1e-6)
