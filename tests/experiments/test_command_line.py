"""What the command says, to whom, and how it ends where nobody can read it; what Python and type checkers see of it."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import pydoc
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import experiments
from experiments.__main__ import COMMANDS, HELP, endings, main
from experiments.output import silent
from experiments.runs import driver, progress
from experiments.runs.interruption import STOPPING
from experiments.runs.progress import Progress, duration, standing

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["train", "--world", "garnet", "--algorithm", "alternating", "--gradients", "exact", "--policy", "table"]
TINY += ["--reward", "table", "--segment-length", "2", "--num-policy-steps", "1", "--width", "2", "--seeds", "2"]
TINY += ["--steps", "6", "--chunk", "2"]


@pytest.fixture(autouse=True)
def quick_report(monkeypatch):
    """Figures take seconds and have tests of their own."""
    monkeypatch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")
        assert main([*TINY, "--quiet", "--out", str(folder)]) == 0
    return folder


# A log ----------------------------------------------------------------------------------------------------------------


def test_in_a_log_a_run_says_how_far_it_is_and_how_it_stands(tmp_path, capsys):
    assert main([*TINY, "--kl-weight", "0.5", "0.6", "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, last = (line for line in lines if line.startswith("step "))  # the others come sooner than half a minute
    number = r"-?\d[\d.e-]*"
    stands = rf"4/4 lanes alive, true return {number}( to {number})?"
    assert re.fullmatch(rf"step 2 of 6, {stands}, \d+ s left", first)
    assert re.fullmatch(rf"step 6 of 6, {stands}, in \d+ s", last)
    compiling = next(i for i, line in enumerate(lines) if line.startswith("compiling"))
    assert (
        compiling < next(i for i, line in enumerate(lines) if re.match(r"compiled in \d+ s", line)) < lines.index(first)
    )


def test_more_seeds_say_which_they_are(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    assert main([*TINY, "--seeds", "3", "--out", str(folder)]) == 0
    assert "\nseeds 2 to 2: step 6 of 6, 1/1 seeds alive, " in capsys.readouterr().out


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand: a list of one time."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_of_a_log_are_half_a_minute_apart_but_the_first_and_the_last(clock, capsys):
    said = []
    with Progress(100, lambda line: said.append((clock[0] - 1000, line))) as shown:
        clock[0] += 500  # compilation
        shown.start(20)
        for _ in range(80):
            clock[0] += 2
            shown.update(1, "well")
    times, lines = zip(*said, strict=True)
    assert times == (502, 532, 562, 592, 622, 652, 660)
    assert lines[0] == "step 21 of 100, well, 3 min left"
    assert lines[3] == "step 66 of 100, well, 68 s left"
    assert lines[-1] == "step 100 of 100, well, in 3 min"


def test_on_a_terminal_there_is_a_bar_and_no_line_and_in_silence_neither(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = []
    for say in (said.append, silent):
        with Progress(2, say) as shown:
            shown.update(2, "well")
        assert ("2/2" in capsys.readouterr().err) == (say is not silent)
    assert not said


def test_a_log_shows_the_score_where_there_is_one_and_leaves_out_what_is_no_number():
    metrics = {
        "true_return": np.zeros((4, 2)),
        "true_score": np.array([[0, 3], [0, 4], [0, np.nan], [0, 100.0]]),
        "transitions": np.ones((4, 2)),
        "status": np.array([[0, 0], [0, 1], [0, 2], [0, 0]]),
    }
    assert standing(metrics, 1) == "3/4 seeds alive, true score 35.7"
    assert standing(metrics, 2) == "3/4 lanes alive, true score 3.5 to 100"
    assert standing({"status": metrics["status"]}, 1) == "3/4 seeds alive"
    assert standing(metrics | {"true_score": np.full((4, 2), np.nan)}, 1) == "3/4 seeds alive, true score –"


def test_a_duration_is_in_words():
    seconds = [0, 35.2, 99, 100, 5900, 12_000, 180_000]
    assert [*map(duration, seconds)] == ["0 s", "35 s", "99 s", "2 min", "98 min", "3 h 20 min", "2.1 days"]


# For programs ---------------------------------------------------------------------------------------------------------


def test_as_json_the_last_table_is_all_of_standard_output(run, capsys):
    for arguments in ([*TINY, "--out", str(run)], ["report", str(run)]):
        assert main([*arguments, "--json"]) == 0
        said = capsys.readouterr()
        assert said.out.count("\n") == 1
        assert json.loads(said.out) == json.loads((run / "summary.json").read_text())
        assert "true return" in said.err
        assert main([*arguments, "--json", "--quiet"]) == 0
        assert capsys.readouterr() == (said.out, "")


def test_quietly_nothing_is_said_but_errors(run, capsys):
    assert main(["report", str(run), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["report", "nowhere", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("bilevel: nowhere is not a run")


def test_the_version_is_that_of_the_package_and_of_what_it_runs_on(capsys):
    assert main(["--version"]) == 0
    bilevel, jax = (importlib.metadata.version(name) for name in ("bilevel-rlhf", "jax"))
    assert capsys.readouterr().out == f"bilevel {bilevel}, jax {jax}, Python {platform.python_version()}\n"


def test_the_citation_and_the_changes_are_of_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [version]
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        (
            ["train"],
            ["run", "world", "algorithm", "problem", "reward", "policy", "gradients", "critic", "annotator", "output"],
        ),
        (["tune"], ["search", "run", "world", "algorithm"]),
    ],
)
def test_help_comes_in_groups_with_what_is_asked_for_most_on_top(capsys, monkeypatch, command, groups):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    places = [text.index(f" {name} options ") for name in groups]
    assert places == sorted(places)
    options = re.findall(r"^\W? ?(--\w[\w-]+)", text, re.MULTILINE)
    assert options[:2] == ["--world", "--algorithm"]
    run = text[text.index(" run options ") : text.index(" world options ")]
    assert re.findall(r"^\W? ?(--\w[\w-]+)", run, re.MULTILINE)[:3] == ["--steps", "--seeds", "--seed"]
    assert "--quiet" in text and "--json" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_says_what_it_does(name, capsys):
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: bilevel {name} ") and len(text) > 400
    assert name in HELP and COMMANDS[name][1] in HELP


def test_help_comes_at_once():
    script = "import sys; from experiments.__main__ import main; main(['--help']); print('jax' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT)
    assert said.endswith("\nFalse\n")


# Before the arguments are read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("train --sigma 1", 0),
        ("train --stopped-code 75", 75),
        ("--quiet train --kl-weight -1 --stopped_code=75 --steps 3", 75),
        ("train --stopped-code 1 --stopped-code 2", 2),
        ("train --stopped-code many", 0),
        ("train --stopped-code", 0),
        ("train --out --stopped-code 75", 75),
    ],
)
def test_the_exit_code_of_a_stopped_run_is_found_before_the_arguments_are_read(words, code):
    ends = endings(words.split())
    assert {ends[number].code for number in STOPPING} == {code}
    assert ends[signal.SIGINT].code == 130


def test_what_begins_no_run_leaves_a_closed_terminal_its_meaning():
    assert set(endings(["report", "--stopped-code", "75"])) == set(endings([])) == {signal.SIGINT}
    assert set(endings(["verify", "P1.bias"])) == {signal.SIGINT, signal.SIGTERM}


# Nobody reads ---------------------------------------------------------------------------------------------------------


def ended(arguments, stdout, **environment) -> tuple[int, str]:
    """The exit code of a command whose standard output goes to that file, and what it says as errors."""
    command = [sys.executable, "-m", "experiments", *arguments]
    settings = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True, "timeout": 200, "cwd": ROOT}
    process = subprocess.run(command, **settings, env=os.environ | environment)
    return process.returncode, process.stderr


def left() -> int:
    """The end of a pipe that can be written to, but nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


ANSWERS = [["--help"], ["train", "--help"], ["report", "nowhere", "--help"], ["train", "--print-config"]]


@pytest.mark.parametrize("arguments", ANSWERS)
def test_help_that_nobody_reads_ends_in_silence(arguments):
    assert ended(arguments, left()) == (0, "")


@pytest.mark.parametrize("arguments", ANSWERS)
def test_help_that_cannot_be_written_is_an_error_in_one_line(arguments):
    with open("/dev/full", "w") as full:
        code, errors = ended(arguments, full)
    assert code == 2
    assert re.fullmatch(r"bilevel: the output cannot be written \(No space left on device\); required: .*\n", errors)


def test_in_an_alphabet_without_its_characters_the_command_speaks_all_the_same(tmp_path):
    with (tmp_path / "said").open("w") as file:
        assert ended(["report", "--help"], file, PYTHONIOENCODING="ascii") == (0, "")
        assert ended(["--help"], file, PYTHONIOENCODING="ascii") == (0, "")
    assert "verify [CLAIM ?]" in (tmp_path / "said").read_text("ascii")


@pytest.mark.parametrize(("where", "code"), [("left", 0), ("full", 2)])
def test_a_run_goes_on_when_its_lines_cannot_be_written(tmp_path, monkeypatch, capsys, where, code):
    with open(left() if where == "left" else "/dev/full", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert main([*TINY, "--out", str(tmp_path / "run")]) == code
        errors = capsys.readouterr().err
    assert errors.count("bilevel: the output cannot be written") == errors.count("\n") == (code > 0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 6


# From Python ----------------------------------------------------------------------------------------------------------


def test_the_help_of_the_package_shows_its_functions():
    text = pydoc.render_doc(experiments, renderer=pydoc.plaintext)
    for name in experiments.__all__:
        assert re.search(rf"^    {name}\(", text, re.MULTILINE), name
        assert name in dir(experiments)
    assert "Runs a configuration to its end" in text


def test_the_package_imports_nothing_until_it_is_used():
    script = "import sys, experiments; dir(experiments); print('jax' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT) == "False False\n"


SCRIPT = """
from pathlib import Path
from experiments import configure, load_params, load_policy, load_run, train

folder: Path = train(configure(world="gridworld", seeds=8, sigma=(0.1, 0.3)), "run", say=print)
steps: int = load_run(folder).sizes["step"]
reward, policy = load_params(folder, seed=0)
action = load_policy(folder, seed=0)([0.0], None)
"""
MISUSES = {
    "configure(world=3)": "arg-type",
    'train("gridworld")': "arg-type",
    "train(configure(), sya=print)": "call-arg",
    'load_params("run", seed="0")': "arg-type",
    'load_policy("run", seed="0")': "arg-type",
    'load_run("run").sizes["step"].upper()': "attr-defined",
    "experiments.trian()": "attr-defined",
}


def test_a_type_checker_passes_a_script_and_finds_what_it_misuses(tmp_path):
    checker = pytest.importorskip("mypy.api")
    (tmp_path / "script.py").write_text(SCRIPT + "\nimport experiments\n" + "\n".join(MISUSES))
    foreign = ",".join(
        f"{name}.*" for name in ("jax", "flax", "optax", "orbax", "distrax", "numpy", "scipy", "matplotlib")
    )
    settings = f"[mypy]\nstrict = True\nmypy_path = {ROOT}\n[mypy-{foreign}]\nfollow_imports = skip\n"  # takes a minute
    (tmp_path / "mypy.ini").write_text(settings)
    options = [
        "--config-file",
        str(tmp_path / "mypy.ini"),
        "--cache-dir",
        str(tmp_path / "cache"),
        "--no-error-summary",
    ]
    found, errors, _ = checker.run([*options, "--hide-error-context", str(tmp_path / "script.py")])
    assert not errors
    first = SCRIPT.count("\n") + 3
    expected = {first + i: code for i, code in enumerate(MISUSES.values())}
    ours = re.findall(r"script\.py:(\d+): error: .*\[([\w-]+)\]$", found, re.MULTILINE)
    assert {int(line): code for line, code in ours} == expected


@pytest.mark.parametrize("package", ["bilevel", "envs", "experiments"])
def test_every_package_tells_type_checkers_that_it_has_types(package):
    assert (ROOT / package / "py.typed").exists()
