"""A plan predicts what a run then takes, and says what it cannot know."""

import json

import pytest

from experiments import configure
from experiments.__main__ import main
from experiments.commands import bench, plan
from experiments.runs.cohort import Cohort, Group
from experiments.settings.job import resolve

TINY = {"batch_size": 4, "rollout_length": 3, "segment_length": 2, "num_policy_steps": 2, "critic": "monte_carlo"}
TABLES = {"policy": "table", "reward": "table"}


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
