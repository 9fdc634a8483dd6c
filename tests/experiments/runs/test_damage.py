"""A report of a run whose files are damaged: whatever is wrong with one is an error of one line, and nothing waits."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from experiments import configure, load_params
from experiments.__main__ import main
from experiments.files import (
    RunFolderError,
    read_arrays,
    write_arrays,
    write_json,
)
from experiments.runs.folder import compare_manifests, group_name, open_run
from experiments.runs.metrics import write_metrics
from experiments.settings.config import as_dict

ROOT = pathlib.Path(__file__).parents[3]
GROUP = group_name(0, 2)
INPUTS = ("config.json", "manifest.json", "sweep.json", "notes.json", "baselines.json", "timing.json", "tables.npz")
METRICS = f"metrics/{GROUP}/00000000.npz"
OUTPUTS = ("summary.json", "report.html", "figures", "figures/outcomes.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two seeds and three steps with all that a run leaves behind, but checkpoints."""
    with open_run(tmp_path_factory.mktemp("runs") / "run") as folder:
        config = as_dict(configure("garnet", "alternating", states=2, actions=2, successors=1, seeds=2, steps=3))
        manifest = {"config": config, "layout": {"num_devices": 1}, "identity": "", "groups": [[0, 2]]}
        told = {"notes": ["resumed at step 2"], "command": "bilevel train"}
        baselines = {"true_return": {"best policy": 1.0, "KL-optimal policy": None}}
        values = {"config": config, "manifest": manifest, "notes": told, "baselines": baselines}
        values |= {"sweep": {"names": [], "values": [[]]}, "timing": {"compile_seconds": 1.0, "run_seconds": 2.0}}
        for name, value in values.items():
            write_json(folder, f"{name}.json", value)
        write_metrics(folder, GROUP, 0, {"true_return": np.arange(6.0).reshape(2, 3)})
        learned = np.arange(8.0).reshape(1, 2, 2, 2)
        tables = {"learned_reward": learned, "policy": np.full((1, 2, 2, 2), 0.5), "true_reward": learned[0, 0]}
        write_arrays(folder, "tables.npz", tables)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, beside a folder that is somebody else's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "dear.txt").write_text("dear")
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def reported(monkeypatch, capfd):
    """Reports a run; its exit code and what it said, once it is seen to be 0, or 2 with one line, within a minute."""
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}.items():
        monkeypatch.setenv(name, value)  # so that the command leaves the settings of this process as they are

    def report(folder: pathlib.Path) -> tuple[int, str]:
        outside = contents(folder.parent / "outside")
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(60)  # ends one that waits for ever, with code 130
        try:
            code = main(["report", str(folder)])
        finally:
            signal.alarm(0)
        said = capfd.readouterr().err
        assert code in (0, 2), said
        assert code == 0 or (said.startswith("bilevel: ") and said.count("\n") == 1), said
        assert contents(folder.parent / "outside") == outside
        assert not [*folder.rglob("*.tmp")]
        return code, said

    return report


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    numbers = content.find(b"NUMPY") + 1  # in an archive other bytes may be dates, and mean nothing
    content[numbers + 64 if numbers else len(content) // 2] ^= 128
    path.write_bytes(content)


def pipe(path: pathlib.Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder_instead(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def bomb(path: pathlib.Path) -> None:
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file), more=np.zeros(2**24))


def rewrite(path: pathlib.Path, content: bytes) -> None:
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": flip,
    "half of it": lambda path: os.truncate(path, path.stat().st_size // 2),
    "nothing": lambda path: os.truncate(path, 0),
    "other bytes": lambda path: rewrite(path, bytes(range(256))),
    "a pipe": pipe,
    "a folder": folder_instead,
}
OF_JSON = {
    "a list": lambda path: rewrite(path, b"[1]"),
    "a deep nest": lambda path: rewrite(path, b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
}


@pytest.mark.parametrize("damage", [*DAMAGE, *OF_JSON, "a bomb"])
@pytest.mark.parametrize("name", [*INPUTS, METRICS])
def test_a_damaged_file_of_a_run_is_named_in_one_line(run, reported, name, damage):
    if (damage in OF_JSON and name.endswith("npz")) or (damage == "a bomb" and name.endswith("json")):
        pytest.skip("of the other kind")
    (DAMAGE | OF_JSON | {"a bomb": bomb})[damage](run / name)
    code, said = reported(run)
    assert code == 2 and pathlib.Path(name).name in said


WRONG = {
    "a number for the notes": ("notes.json", "notes", 1),
    "numbers as notes": ("notes.json", "notes", [1]),
    "a list for the command": ("notes.json", "command", []),
    "a text for a baseline": ("baselines.json", "true_return", "high"),
    "an object in a baseline": ("baselines.json", "true_return", {"best": {}}),
    "a text for seconds": ("timing.json", "run_seconds", "long"),
    "seconds beyond every number": ("timing.json", "run_seconds", 10**400),
    "a text for names": ("sweep.json", "names", "sigma"),
    "a name without values": ("sweep.json", "names", ["sigma"]),
    "rows that are no rows": ("sweep.json", "values", [1]),
    "a text for the groups": ("manifest.json", "groups", "all"),
    "a billion seeds": ("manifest.json", "groups", [[0, 10**9]]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_with_a_value_of_another_type_is_named_in_one_line(run, reported, wrong):
    name, key, value = WRONG[wrong]
    write_json(run, name, json.loads((run / name).read_text()) | {key: value})
    code, said = reported(run)
    assert code == 2 and name in said


def test_a_configuration_of_another_run_is_named_and_a_manifest_that_says_nothing_too(run, reported):
    config = json.loads((run / "config.json").read_text())
    for other in (config | {"batch_size": 2 * config["batch_size"]}, {"notes": 3}):
        write_json(run, "config.json", other)
        code, said = reported(run)
        assert code == 2 and "config.json does not fit manifest.json" in said
    write_json(run, "config.json", config | {"steps": 2 * config["steps"]})  # it is being extended
    assert reported(run)[0] == 0
    write_json(run, "manifest.json", {"notes": 3})
    code, said = reported(run)
    assert code == 2 and "manifest.json lacks what was run" in said


def test_damaged_notes_are_named_before_anything_is_drawn(run, reported):
    write_json(run, "notes.json", {"notes": 3})
    assert not (run / "figures").exists() and reported(run)[0] == 2
    assert not (run / "figures").exists()


def test_a_report_names_what_is_not_of_the_run(run, capfd):
    (group,) = (run / "metrics").iterdir()
    (group / "notes.npz").write_bytes(b"")
    assert main(["report", str(run)]) == 0
    assert f"ignored in {run}, for it is not of this run: metrics/{group.name}/notes.npz" in capfd.readouterr().out


def test_a_name_with_dollar_signs_is_drawn_as_it_is(run, reported):
    write_json(run, "baselines.json", {"true_return": {"$\\foo$": 1.0}})
    assert reported(run)[0] == 0
    assert "$\\foo$" in (run / "report.html").read_text()


TABLES = {
    "a table too little": lambda tables: tables.pop("policy"),
    "other states": lambda tables: tables.update(true_reward=np.zeros((3, 2))),
    "another sweep": lambda tables: tables.update(learned_reward=np.zeros((2, 2, 2, 2))),
    "words": lambda tables: tables.update(policy=np.full((1, 2, 2, 2), "a")),
    "a map of states that are not": lambda tables: tables.update(grid=np.array([[0, 1, 2]])),
}


@pytest.mark.parametrize("change", TABLES)
def test_tables_that_do_not_fit_the_run_are_named_in_one_line(run, reported, change):
    tables = read_arrays(run / "tables.npz")
    TABLES[change](tables)
    write_arrays(run, "tables.npz", tables)
    code, said = reported(run)
    assert code == 2 and "tables.npz" in said and "does not fit" in said


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_stands_where_a_report_is_to_be_is_replaced_or_named_and_nothing_else_changes(run, reported, name, kind):
    (run / name).parent.mkdir(exist_ok=True)
    if kind == "link":
        (run / name).symlink_to(run.parent / "outside" / ("" if name == "figures" else "dear.txt"))
    elif kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).mkdir()
    code, said = reported(run)
    makes_no_difference = name == "figures" if kind == "folder" else name != "figures"
    assert code == (0 if makes_no_difference else 2)
    assert makes_no_difference or name in said
    assert code == 2 or ((run / name).is_dir() if name == "figures" else (run / name).is_file())


def test_a_report_of_a_file_or_in_a_folder_that_cannot_be_written_gets_one_line(run, reported):
    assert "is not a run" in reported(run / "config.json")[1]
    shutil.rmtree(run)
    run.write_text("")
    assert "is not a run" in reported(run)[1]


# What else is read from a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("seeds", 10**9, "--seeds"),
        ("world", "atlantis", "--world"),
        ("states", "many", "--states"),
        ("policy_hidden", [10**9], "--policy-hidden"),
        ("kl_weight", [1 + i / 2000 for i in range(2000)], "the sweep has"),
        ("colour", "red", "colour"),
        ("world", 1, "world is a whole number"),
    ],
)
def test_a_configuration_that_none_could_have_asked_for_is_refused_before_anything_is_allocated(
    run, option, value, why
):
    config = json.loads((run / "config.json").read_text()) | {"reward_step_size": [i + 1 for i in range(1000)]}
    write_json(run, "config.json", config | {option: value})
    with pytest.raises(RunFolderError) as caught:
        load_params(run, seed=0)
    assert why in str(caught.value) and "config.json" in str(caught.value)


def test_of_another_type_a_number_of_steps_is_another_run():
    before = {"config": {"steps": "ten"}, "versions": {}}
    refused = compare_manifests(before, {"config": {"steps": 10}, "versions": {}}, ("steps",)).refused
    assert [line.partition(";")[0] for line in refused] == ['config.steps: was "ten", now 10']


def test_a_report_with_names_that_are_no_text_is_said(run):
    write_json(run, "timing.json", {"\ud800_seconds": 1.0})
    command = [sys.executable, "-m", "experiments", "report", str(run)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, cwd=ROOT)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"? 1 s" in done.stdout
