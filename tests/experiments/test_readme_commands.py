"""Each command that the READMEs offer does what it says there: run as it is, and a number of each looked at."""

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
import yaml
from readmes import ROOT, blocks

from experiments import load_run
from experiments.claims import CLAIMS
from experiments.statistics.intervals import interquartile_mean

LINES = [x.strip() for x in re.findall(r"(?:^|/)bilevel ([^#\n]*)", "\n".join(blocks("bash")), re.MULTILINE)]
LINES = [*dict.fromkeys(LINES)]


def run(command: str, folder: pathlib.Path) -> str:
    """What the command prints, in that folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    line = f"{shlex.quote(sys.executable)} -m experiments {command}"
    done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    fails = int(command == "verify --quick")  # the sup norm's claim does, as the README says
    assert done.returncode in (0, fails), done.stderr[-2000:]
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


def reports(name):
    """The claim has numbers without a verdict, all of them finite, and a figure."""

    def look(folder, said):
        result = json.loads((folder / "runs/verify/full/summary.json").read_text())[name]
        assert result["verdict"] == "reported" and len(result["numbers"]) > 2
        assert np.isfinite([x["center"] for x in result["numbers"].values()]).all()
        assert (folder / f"runs/verify/full/{name}/figure.png").stat().st_size > 10_000

    return look


def solves_by_both_baselines(folder, said):
    """Two-stage and alternating RLHF reach the goal at 500 labels, with tables and with networks."""
    reports("P1.cartpole")(folder, said)
    (table,) = json.loads((folder / "runs/verify/full/summary.json").read_text())["P1.cartpole"]["tables"]
    reached = {row["run"]: row["reaches 475"] for row in table["rows"]}
    judged = [x for name, x in reached.items() if re.match(r"(two-stage|alternating).*, 500 labels", name)]
    assert judged == 4 * ["yes"]


def is_written_down(folder, said):
    """The file holds the options of the run."""
    options = yaml.safe_load((folder / "run.yaml").read_text())
    assert (options["world"], options["algorithm"], options["seeds"]) == ("garnet", "bilevel", 32)


def is_as_written(folder, said):
    """The run of the file, but for the flag that wins over it."""
    dataset, _ = only_run(folder)
    assert dataset.sizes["seed"] == 64 and json.loads(dataset.attrs["config"])["world"] == "garnet"


def is_reported_anew(folder, said):
    """The table is printed, and the page is the youngest file."""
    (path,) = (folder / "runs").glob("*-*")
    assert "true return" in said
    assert (path / "report.html").stat().st_mtime > (path / "timing.json").stat().st_mtime


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
    "train --help": says("--sigma", "--world", "--seeds"),
    "train --world bandit --algorithm alternating --help": says("--contexts", "--num-policy-steps"),
    "train --sigma 0.03 0.1 0.3 --kl-weight 0.2 0.5": sweeps,
    "train --algorithm alternating --world gridworld --map four_rooms": beats_the_reference,
    "train --world cartpole --algorithm two_stage --seeds 16": balances,
    "train --objective excess_log_likelihood --error-rate 0.1": raises_its_objective,
    "train --steps 200": is_extended,
    "train --world garnet --print-config > run.yaml": is_written_down,
    "train --config run.yaml --seeds 64": is_as_written,
    "report runs/gridworld-bilevel-67da0844": is_reported_anew,
    "tune --budget 20000000 --world garnet": stays_in_its_budget,
    "plan --seeds 4096 --target cuda": says("4096 lanes", "memory:", "time:"),
    "bench": measures,
    "verify --list": says(*CLAIMS),
    "verify --quick": judges("quick"),
    "verify P1.bias P1.rate": judges("full"),
    "verify P1.ladder": reports("P1.ladder"),
    "verify P1.cartpole": solves_by_both_baselines,
    "verify --help": says("--quick", "--publish", "holds"),
}
NOT_HERE = {
    "train --world brax --body humanoid --seeds 8": "takes hours without an accelerator",
    "train --distributed --coordinator host0:1234 --num-processes 2 --process-id 0": "needs two machines",
    "verify 'P1.*' --all": "takes hours; the claims' own tests measure each at small sizes",
}
AFTER = {  # a line that goes on from what another has left
    "train --steps 200": "train",
    "report runs/gridworld-bilevel-67da0844": "train",
    "train --config run.yaml --seeds 64": "train --world garnet --print-config > run.yaml",
}


def test_every_command_of_the_readmes_is_looked_at_and_no_other():
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
def test_a_command_of_the_readmes_does_what_it_says(command, finished):
    if command in NOT_HERE:
        pytest.skip(NOT_HERE[command])
    LOOKS[command](*finished(command))
