"""Each command that the README offers does what it says there: run as it is, and a number of each looked at."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import load_run
from experiments.statistics.intervals import interquartile_mean

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [x.strip() for x in re.findall(r"(?:^|/)bilevel ([^#\n]*)", "\n".join(BLOCKS), re.MULTILINE)]


def run(command: str, folder: pathlib.Path) -> str:
    """What the command prints, in that folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "experiments", *shlex.split(command)]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    refuted = int(command == "verify --quick")  # the sup norm's claim fails, as the README says
    assert done.returncode in (0, refuted), done.stderr[-2000:]
    return done.stdout + done.stderr


def only_run(folder):
    """The dataset of the one run below a folder, and its reference policy's true return where it is known."""
    (path,) = (folder / "runs").glob("*-*")
    baselines = path / "baselines.json"
    known = json.loads(baselines.read_text())["true_return"] if baselines.exists() else {}
    return load_run(path), known.get("reference policy")


def beats_the_reference(folder, said):
    """The interval of the true return lies above the reference policy's."""
    dataset, reference = only_run(folder)
    assert interquartile_mean(dataset.true_return.values[0, :, -1]).low > reference


def sweeps(folder, said):
    """Six points, at each of which the upper objective has risen."""
    dataset, _ = only_run(folder)
    assert dataset.sizes["hyper"] == 6
    objective = dataset.upper_objective.mean("seed").values
    assert np.all(objective[:, -10:].mean(axis=1) > objective[:, 0])


def balances(folder, said):
    """The interquartile mean of the steps survived is at least 475, from at most 500 labels a seed."""
    dataset, _ = only_run(folder)
    assert dataset.labels.sum("step").values.max() <= 500
    assert interquartile_mean(dataset.true_score.values[0, :, -1]).center >= 475


def raises_its_objective(folder, said):
    """The excess objective, whose maximum is 0, has risen."""
    dataset, _ = only_run(folder)
    objective = dataset.upper_objective.mean("seed").values[0]
    assert objective[:10].mean() < objective[-10:].mean() < 0.05


def is_extended(folder, said):
    """Twice as many steps, at whose end the true return still lies above the reference policy's."""
    dataset, reference = only_run(folder)
    assert dataset.sizes["step"] == 200
    assert interquartile_mean(dataset.true_return.values[0, :, -1]).low > reference


def climbs(folder, said):
    """There is a figure, and every rung's numbers are finite."""
    assert (folder / "runs/ladder/ladder.png").stat().st_size > 10_000
    rungs = json.loads((folder / "runs/ladder/ladder.json").read_text())["rungs"]
    numbers = [x for rung in rungs for x in rung.values() if isinstance(x, float)]
    assert len(rungs) > 2 and numbers and np.isfinite(numbers).all()


def solves_by_both_baselines(folder, said):
    """Two-stage and alternating RLHF reach the goal at 500 labels, with tables and with networks."""
    rows = json.loads((folder / "runs/cartpole/cartpole.json").read_text())
    judged = [row for row in rows if row["method"] in ("two-stage", "alternating") and row["labels"] == 500]
    assert len(judged) == 4 and all(row["reached"] for row in judged)


def stays_in_its_budget(folder, said):
    """The search takes at most its budget and names a command."""
    found = json.loads((folder / "runs/tune/tune.json").read_text())
    assert found["transitions"] <= found["budget"] == 20_000_000
    assert found["command"] in said


def measures(folder, said):
    """Every workload is timed at each number of seeds, and once driven from Python."""
    rows = json.loads((folder / "runs/bench/bench.json").read_text())["rows"]
    assert all(row["step_seconds"] > 0 for row in rows)
    for name in {row["workload"] for row in rows}:
        ours = [row for row in rows if row["workload"] == name]
        assert sum(row["driver"] == "Python" for row in ours) == 1
        assert {row["seeds"] for row in ours if row["driver"] != "Python"} == {1, 16, 64, 256, 1024}


def says(*words):
    """What is printed holds the words."""
    return lambda folder, said: [pytest.fail(f"{word!r} is not said") for word in words if word not in said]


def judges(name):
    """No claim is stopped, and none fails but the one of which the README says so."""

    def look(folder, said):
        results = json.loads((folder / f"runs/verify/{name}/summary.json").read_text())
        assert results and {claim for claim, x in results.items() if x["verdict"] == "fails"} <= {"P1.critic_sup"}

    return look


LOOKS = {
    "train": beats_the_reference,
    "train --sigma 0.03 0.1 0.3 --kl-weight 0.2 0.5": sweeps,
    "train --algorithm alternating --world gridworld --map four_rooms": beats_the_reference,
    "train --world cartpole --algorithm two_stage --seeds 16": balances,
    "train --objective excess_log_likelihood --error-rate 0.1": raises_its_objective,
    "train --steps 200": is_extended,
    "study ladder": climbs,
    "study cartpole": solves_by_both_baselines,
    "study --help": says("ladder", "cartpole"),
    "tune --budget 20000000 --world garnet": stays_in_its_budget,
    "bench": measures,
    "bench --plan --seeds 4096 --target cuda": says("4096 lanes", "memory:", "time:"),
    "verify --quick": judges("quick"),
    "verify P1.bias P1.rate": judges("full"),
    "verify --help": says("P1.bias", "P1.rate"),
}
NOT_HERE = {
    "train --world brax --body humanoid --seeds 8": "takes hours without an accelerator",
    "train --distributed --coordinator host0:1234 --num-processes 2 --process-id 0": "needs two machines",
}
AFTER = {"train --steps 200": "train"}  # a line that goes on from what another has left


def test_every_command_of_the_readme_is_looked_at_and_no_other():
    assert len(LINES) > 10
    assert sorted(LINES) == sorted([*LOOKS, *NOT_HERE])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """command -> (folder, what was printed), run once."""
    done: dict = {}

    def folder_of(command):
        if command not in done:
            folder = tmp_path_factory.mktemp("command")
            if command in AFTER:
                shutil.copytree(folder_of(AFTER[command])[0], folder, dirs_exist_ok=True)
            done[command] = folder, run(command, folder)
        return done[command]

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize("command", LINES)
def test_a_command_of_the_readme_does_what_it_says(command, finished):
    if command in NOT_HERE:
        pytest.skip(NOT_HERE[command])
    LOOKS[command](*finished(command))
