"""bilevel tune: successive halving within its budget, blind to the truth, and one line for a mistake."""

import json
import shlex

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.commands.arguments import parse_train
from experiments.commands.tune import whole
from experiments.runs.folder import open_run
from experiments.runs.halving import RANGES

TINY = ["--world", "garnet", "--states", "3", "--actions", "2", "--policy", "table", "--reward", "table"]
TINY += ["--critic-model", "table", "--num-policy-steps", "1", "--batch-size", "4", "--rollout-length", "4"]
TINY += ["--segment-length", "2", "--num-targets", "1", "--num-transitions", "4", "--num-chains", "4", "--width", "4"]


def test_a_whole_number_may_have_an_exponent():
    words = {"1": 1, "10000000": 10**7, "1e7": 10**7, "1.5E6": 1_500_000, str(2**63 - 1): 2**63 - 1}
    assert {word: whole(word) for word in words} == words
    for word in ("0", "-1", "1.5", "1e-3", "1e19", "1e999999999", "inf", "nan", "much", "", str(2**63)):
        assert whole(word) == 0


def test_the_command_says_what_to_run_next(tmp_path, capsys):
    arguments = [*TINY, "--candidates", "5", "--budget", "2000", "--sigma", "0.2", "--out", str(tmp_path)]
    assert main(["tune", *arguments]) == 0
    found = json.loads((tmp_path / "tune.json").read_text())
    assert found["transitions"] <= 2000
    assert found["command"] in capsys.readouterr().out
    bilevel, train, *rest = shlex.split(found["command"])
    assert (bilevel, train) == ("bilevel", "train")
    config, *_ = parse_train(rest)
    assert config.options["sigma"] == (0.2,)
    assert set(found["chosen"]) == set(RANGES) - {"sigma"}
    for name, value in found["chosen"].items():
        assert config.options[name] == (value,)
        assert RANGES[name][0] <= value <= RANGES[name][1]
    last = found["rungs"][-1]
    assert last["candidates"][int(np.argmax([-np.inf if x is None else x for x in last["scores"]]))] == found["chosen"]


def test_two_searches_at_once_and_a_folder_of_something_else_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.runs.halving.successive_halving", None)  # nothing is searched
    arguments = ["tune", *TINY, "--budget", "2000", "--candidates", "5", "--out"]
    with open_run(tmp_path / "held"):
        assert main([*arguments, str(tmp_path / "held")]) == 2
    assert "is held by process" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert main([*arguments, str(tmp_path / "mine")]) == 2
    assert "is not empty and is not a run" in capsys.readouterr().err


BAD = {
    "no budget": ([], ["--budget was not given", "transitions", "--budget 10000000"]),
    "a budget of a word": (["--budget", "much"], ["--budget is 'much'; required: a whole number"]),
    "a budget too small": (["--budget", "1e2"], ["--budget is 100", "at least", "--candidates"]),
    "one candidate": (["--budget", "1000000", "--candidates", "1"], ["--candidates is 1", "at least 2"]),
    "another algorithm": (["--budget", "9999", "--algorithm", "alternating"], ["alternating", "--algorithm bilevel"]),
    "a sweep": (["--budget", "9999", "--kl-weight", "0.2", "0.5"], ["--kl-weight has several values"]),
    "nothing to tune": (
        [
            "--budget",
            "9999",
            "--sigma",
            "1",
            "--policy-step-size",
            "1",
            "--reward_step_size=1",
            "--critic-step-size",
            "1",
        ],
        ["nothing is left to tune"],
    ),
    "an option that is none": (["--budget", "9999", "--sgima", "1"], ["--sgima"]),
    "several processes": (["--budget", "9999", "--distributed"], ["one process"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_gets_one_line_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.commands.tune.programs", None)  # nothing may compile
    arguments, words = BAD[name]
    assert main(["tune", *TINY, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bilevel: ") and err.count("\n") == 1
    assert all(word in err for word in words)
    assert not list(tmp_path.iterdir())
