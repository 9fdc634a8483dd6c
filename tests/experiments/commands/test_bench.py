"""The benchmark counts what it says, and the plan predicts what a run then takes."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments import configure
from experiments.__main__ import main
from experiments.commands import bench, plan
from experiments.runs.cohort import Cohort, Group
from experiments.settings.job import resolve

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
    bench.measure(tmp_path, print)
    shown = capsys.readouterr().out
    assert shown.count("small") >= 4 and "over Python" in shown and "GFLOP/s" in shown
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_a_plan_predicts_the_memory_of_the_program_that_then_runs():
    def config(seeds):
        return configure("garnet", "bilevel", **TINY, **TABLES, seeds=seeds, width=2, steps=10, chunk="5")

    made = plan.plan(config(40), "cpu", 1)
    job = resolve(config(40))
    cohort = Cohort(job._replace(devices=job.devices[:1]), Group(0, 40))
    _, wanted = cohort.compile(5)
    assert made.bytes_a_device == pytest.approx(wanted.total, rel=0.05)
    assert (made.lanes, made.blocks) == (40, 20)
    assert made.run_seconds > 0 and made.flops == 40 * 10 * bench.step_flops(cohort)
    spread = plan.plan(config(40), "cpu", 4)
    assert spread.blocks == 5 and spread.bytes_a_device < made.bytes_a_device


def test_a_plan_for_a_device_that_is_not_here_predicts_no_time(capsys):
    options = ["--world", "garnet", "--policy", "table", "--reward", "table", "--critic", "monte_carlo", "--seeds", "6"]
    assert main(["plan", "--target", "tpu", "--target-devices", "2", *options]) == 0
    said = capsys.readouterr().out
    assert "time: not predicted, since no tpu device is here" in said
    assert "6 lanes, 100 outer steps, on 2 tpu device(s)" in said


def test_a_plan_as_json_is_its_numbers_on_one_line(capsys):
    options = ["--world", "garnet", "--policy", "table", "--reward", "table", "--critic", "monte_carlo", "--seeds", "6"]
    assert main(["plan", "--json", "--target", "tpu", "--target-devices", "2", *options]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.out.count("\n") == 1 and set(found) == {"target", "devices", *plan.Plan._fields}
    assert (found["target"], found["devices"], found["lanes"], found["run_seconds"]) == ("tpu", 2, 6, None)
    assert f"memory: {found['bytes_a_device'] / 1e6:,.1f} MB a device" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--seeds", "3"], ["bench got --seeds 3", "bilevel plan"]),
        (["bench", "--plan", "--target", "cuda"], ["bench got --plan", "bilevel plan"]),
        (["bench", "--out="], ["bench got --out=", "--out FOLDER"]),
        (["plan", "--target", "gpu"], ["--target is 'gpu'", "cuda"]),
        (["plan", "--target-devices", "none"], ["--target-devices is 'none'", "a whole number"]),
        (["plan", "--target-devices", "-1"], ["--target-devices is -1", "at least 1"]),
        (["plan", "--seeds", "0"], ["--seeds is 0"]),
        (["plan", "--distributed"], ["plan got --distributed", "one process", "--target-devices"]),
        (["plan", "--out", "x"], ["plan got --out", "--target-devices"]),
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
