"""The benchmark counts what it says."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.__main__ import main
from experiments.commands import bench

TINY = {"batch_size": 4, "rollout_length": 3, "segment_length": 2, "num_policy_steps": 2, "critic": "monte_carlo"}
TABLES = {"policy": "table", "reward": "table"}


def test_matrix_products_are_counted_by_hand():
    def program(x, y):
        z = jnp.einsum("ij,jk->ik", x, y)  # 2 · 3 · 5 · 4 = 120

        def body(carry, _):
            return carry @ jnp.ones((5, 5)), None  # 2 · 3 · 5 · 5 = 150, seven times

        z, _ = jax.lax.scan(body, z, length=7)
        return jax.jit(jax.vmap(lambda row: row @ jnp.ones(5)))(z)  # 2 · 3 · 5 = 30

    jaxpr = jax.make_jaxpr(program)(jnp.ones((3, 4)), jnp.ones((4, 5))).jaxpr
    assert bench.matrix_flops(jaxpr) == 120 + 7 * 150 + 30


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "WORKLOADS", {"small": ("garnet", TINY | TABLES)})
        patch.setattr(bench, "peak_flops", lambda repeats: 1e9)
        return bench.bench(seeds=(1, 4), names=("small",), repeats=2)


def test_a_benchmark_counts_what_its_runs_report(result):
    python, one, four = result["rows"]
    assert [row["driver"] for row in result["rows"]] == ["Python", "one program", "one program"]
    # Two rollouts of 4 × 3 transitions at each of 2 inner steps, 3 batches of 2 pairs of 2 steps, and line 7's rollout.
    transitions, labels = 2 * 2 * 12 + 3 * 8 + 12, 3 * 2
    for row in (python, one):
        assert row["per_second"]["transitions"] * row["step_seconds"] == pytest.approx(transitions)
        assert row["per_second"]["labels"] * row["step_seconds"] == pytest.approx(labels)
    assert four["per_second"]["transitions"] * four["step_seconds"] == pytest.approx(4 * transitions)
    assert one["bytes_a_seed"] > 0 and result["collecting"]["small"] > 0
    if hasattr(bench.os, "sched_setaffinity") and jax.devices()[0].platform == "cpu":
        assert 0 < result["core_speedup"]["small"] < 100
    else:
        assert result["core_speedup"]["small"] is None


def test_a_benchmark_is_shown_and_saved(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "bench", lambda say=None: result)
    assert main(["bench", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("small") >= 4 and "over Python" in shown and "GFLOP/s" in shown
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "bench.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--seeds", "3"], ["bench got --seeds 3", "bilevel plan"]),
        (["bench", "--plan", "--target", "cuda"], ["bench got --plan", "bilevel plan"]),
        (["bench", "--out="], ["bench got --out=", "--out FOLDER"]),
    ],
)
def test_mistakes_get_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said


def test_threads_are_bound_and_released():
    if not hasattr(bench.os, "sched_setaffinity"):
        pytest.skip("this system does not bind threads to cores")
    cores = bench.os.sched_getaffinity(0)
    try:
        bench.bind({min(cores)})
        assert bench.os.sched_getaffinity(0) == {min(cores)}
    finally:
        bench.bind(cores)
    assert bench.os.sched_getaffinity(0) == cores
