"""The score that a run reports, against gymnasium's own CartPole-v1 with the saved policy."""

import numpy as np
import pytest

from experiments import configure, load_policy, load_run, train
from experiments.statistics.intervals import interquartile_mean

gymnasium = pytest.importorskip("gymnasium")
SLACK = 1.0  # steps, for failures so rare that no episode of one side has any


def lengths(policy, seed: int, number: int) -> np.ndarray:
    """Steps of each of as many episodes."""
    env, rng, steps = gymnasium.make("CartPole-v1"), np.random.default_rng(seed), []
    for episode in range(number):
        observation, _ = env.reset(seed=1000 * seed + episode)
        paid, over = 0.0, False
        while not over:
            observation, reward, fallen, late, _ = env.step(policy(observation, rng))
            paid, over = paid + reward, fallen or late
        steps.append(paid)
    return np.array(steps)


def agrees(run: np.ndarray, episodes: np.ndarray, rollouts: int) -> bool:
    """Whether the run's scores [seed], means of as many rollouts, and episodes [seed, episode] differ by noise alone: at
    most four standard errors of their difference, averaged over seeds."""
    variance = episodes.var(axis=1, ddof=1) * (1 / rollouts + 1 / episodes.shape[1])
    error = np.sqrt(variance.sum()) / len(run)
    return abs(np.mean(run - episodes.mean(axis=1))) < 4 * error + SLACK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds that have learned something from 200 labels."""
    sizes = dict(seeds=2, width=2, devices=1, steps=2, chunk="2", batch_size=10, rollout_length=100, num_batches=20)
    config = configure("cartpole", "two_stage", policy_step_size=0.03, **sizes)
    return train(config, tmp_path_factory.mktemp("cartpole") / "run")


def test_gymnasium_gives_the_score_of_the_run_and_another_one_to_exchanged_actions(folder):
    run = load_run(folder).true_score.values[0, :, -1]
    policies = [load_policy(folder, seed=seed) for seed in range(2)]
    assert min(run) > 50
    assert agrees(run, np.stack([lengths(policy, seed, 40) for seed, policy in enumerate(policies)]), 32)

    def exchanged(policy):
        return lambda observation, rng: 1 - policy(observation, rng)

    wrong = np.stack([lengths(exchanged(policy), seed, 40) for seed, policy in enumerate(policies)])
    assert not agrees(run, wrong, 32)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["two_stage", "alternating"])
def test_the_defaults_balance_the_pole_here_and_in_gymnasium_on_a_base_seed_that_did_not_choose_them(
    algorithm, tmp_path
):
    folder = train(configure("cartpole", algorithm, seeds=16, seed=4), tmp_path / "run")
    dataset = load_run(folder)
    assert dataset.labels.sum("step").values.max() <= 500
    run = dataset.true_score.values[0, :, -1]
    inside = interquartile_mean(run)
    assert inside.center >= 475
    episodes = np.stack([lengths(load_policy(folder, seed=seed), seed, 20) for seed in range(16)])
    assert agrees(run, episodes, 32)
    outside = interquartile_mean(episodes.mean(axis=1))
    assert outside.center >= 475
    assert outside.low <= inside.high and inside.low <= outside.high
