"""The driver: a run ends with what a reader needs, goes on after any interruption bit for bit, and refuses another run."""

import inspect
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bilevel.run import DIVERGED
from experiments import configure, load_params, load_run, train
from experiments.files import RunFolderError
from experiments.runs import cohort, driver
from experiments.runs.folder import open_run
from experiments.settings.options import OptionError

ROOT = pathlib.Path(__file__).parents[3]
TINY = {
    "states": 3,
    "actions": 2,
    "successors": 2,
    "reward": "table",
    "policy": "table",
    "critic_model": "table",
    "num_policy_steps": 2,
    "batch_size": 4,
    "rollout_length": 4,
    "segment_length": 2,
    "num_targets": 1,
    "num_transitions": 8,
    "num_chains": 4,
    "seeds": 3,
    "steps": 7,
    "chunk": "2",
    "width": 2,
    "sigma": (0.1, 0.2),
}


def tiny(**options):
    """A configuration whose run takes a second once it is compiled."""
    return configure("garnet", "bilevel", **(TINY | options))


def cheap(**options):
    """Another algorithm without sampling, which compiles in a fifth of the time."""
    shared = {name: value for name, value in TINY.items() if name != "sigma"}
    return configure("garnet", "alternating", **(shared | {"gradients": "exact", "kl_weight": (0.5, 0.6)} | options))


def result(folder) -> dict[str, np.ndarray]:
    """Every metric [hyper, seed, step], and every learned number [hyper, seed, ...], of a run."""
    run = load_run(folder)
    with np.load(folder / "tables.npz") as tables:  # the parameters themselves, since both models are tables
        learned = {name: tables[name] for name in ("learned_reward", "policy")}
    return {name: run[name].values for name in run} | learned


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and what was said."""
    said: list[str] = []
    folder = train(tiny(), tmp_path_factory.mktemp("whole") / "run", say=said.append, command="bilevel train …")
    return folder, said


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Leaves out the drawing of reports, except where a test reads one."""
    if "report.html" not in inspect.getsource(request.function):
        monkeypatch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")


@pytest.fixture(autouse=True)
def quick_report(monkeypatch):
    """Figures take seconds and have tests of their own: only `whole` draws them."""

    def write(folder, dataset, summary):
        return shutil.copy(folder / "notes.json", folder / "report.html")

    monkeypatch.setattr(driver, "write_report", write)


def copied(whole, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole[0], tmp_path / "copy"))


def test_a_run_leaves_what_a_reader_needs(whole):
    folder, said = whole
    for name in ("config", "manifest", "sweep", "summary", "timing", "baselines"):
        assert json.loads((folder / f"{name}.json").read_text())
    assert list((folder / "figures").glob("*.png"))
    assert "<svg" in (folder / "report.html").read_text()
    run = load_run(folder)
    assert dict(run.sizes) == {"hyper": 2, "seed": 3, "step": 7}
    assert list(run.sigma.values) == [0.1, 0.2]
    assert np.load(folder / "tables.npz")["learned_reward"].shape == (2, 3, 3, 2)
    text = "\n".join(said)
    assert "true return" in text
    assert "report:" in text
    assert "checkpoints" in text and "MB" in text


def test_learned_parameters_are_those_of_the_seed(whole):
    folder, _ = whole
    table = np.load(folder / "tables.npz")["learned_reward"]
    for point, seed in ((0, 2), (1, 0)):
        np.testing.assert_array_equal(load_params(folder, seed, point).reward, table[point, seed])
    for seed in (3, -1, 1.5, "0", True):
        with pytest.raises(RunFolderError, match=f"no seed {seed!r}; required: a whole number from 0 to 2"):
            load_params(folder, seed)
    with pytest.raises(RunFolderError, match="no point 2; required: a whole number from 0 to 1"):
        load_params(folder, 0, point=2)


def test_before_the_first_checkpoint_there_are_no_parameters_to_load(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cohort.Checkpoints, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run")
    with pytest.raises(RunFolderError, match="no checkpoint of seed 0 yet"):
        load_params(tmp_path / "run", 0)
    assert dict(load_run(tmp_path / "run").sizes) == {"hyper": 2, "seed": 3, "step": 2}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("home", "name"), [(cohort, "write_metrics"), (cohort.Checkpoints, "save")])
def test_interrupted_around_any_write_it_resumes_bit_for_bit(whole, tmp_path, monkeypatch, home, name, before):
    honest, calls = getattr(home, name), []

    def interrupt(*arguments):
        calls.append(name)
        if len(calls) == 2 and before:
            raise KeyboardInterrupt
        honest(*arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "run")
    assert_same_bits(result(train(tiny(), tmp_path / "run")), result(whole[0]))


def test_a_resumed_run_has_counted_how_long_it_has_been_calm(tmp_path, monkeypatch):
    options = {"gradient_tolerance": 1e9, "patience": 4}  # converges in the second chunk of two steps
    once = result(train(cheap(**options), tmp_path / "once"))
    np.testing.assert_array_equal(once["status"][0, 0], [0, 0, 0, 1, 1, 1, 1])
    honest = cohort.Checkpoints.save

    def interrupt(checkpoints, step, state):
        honest(checkpoints, step, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cohort.Checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cheap(**options), tmp_path / "twice")
    assert_same_bits(result(train(cheap(**options), tmp_path / "twice")), once)


def test_a_run_in_one_call_is_the_run_in_chunks_bit_for_bit(whole, tmp_path):
    assert_same_bits(result(train(tiny(chunk="all"), tmp_path / "run")), result(whole[0]))


def test_more_steps_extend_a_run_to_the_longer_one(whole, tmp_path):
    short = train(tiny(steps=4), tmp_path / "run")
    assert_same_bits(result(train(tiny(), short)), result(whole[0]))


def test_more_seeds_extend_a_run_to_the_wider_one(tmp_path):
    narrow = result(train(cheap(), tmp_path / "run"))
    wide = result(train(cheap(seeds=5), tmp_path / "run"))
    assert_same_bits(wide, result(train(cheap(seeds=5), tmp_path / "fresh")))
    for name, values in narrow.items():
        np.testing.assert_array_equal(wide[name][:, :3], values, err_msg=name)
    assert wide["status"].shape == (2, 5, 7)
    assert load_params(tmp_path / "run", 4).reward.shape == (3, 2)


def test_a_finished_run_prints_its_table_again_and_computes_nothing(whole, tmp_path, monkeypatch):
    folder = copied(whole, tmp_path)
    monkeypatch.setattr(cohort.Cohort, "compile", None)
    for _ in range(3):  # and again: what a rerun writes must not look like another run
        said: list[str] = []
        train(tiny(), folder, say=said.append)
        assert any("true return" in line for line in said)


def test_a_flipped_byte_in_the_newest_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path):
    folder = copied(whole, tmp_path)
    steps = [path for path in (folder / "checkpoints" / "000000-000002").iterdir() if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    for data in (path for path in newest.rglob("d/*") if path.is_file()):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    said: list[str] = []
    train(tiny(), folder, say=said.append)
    assert any(f"checkpoint {newest.name}" in line and "was passed over: " in line for line in said)
    assert_same_bits(result(folder), result(whole[0]))
    assert "was passed over: " in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "change", [{"sigma": (0.1, 0.3)}, {"width": 1}, {"precision": "float64"}, {"steps": 3}, {"seeds": 2}]
)
def test_another_run_is_refused_with_what_differs(whole, change):
    (name,) = change
    with pytest.raises(RunFolderError) as caught:
        train(tiny(**change), whole[0])
    assert name in str(caught.value)
    assert "was" in str(caught.value)


def test_other_library_versions_are_refused(whole, tmp_path):
    folder = copied(whole, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["jax"] = "0.0.1"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match=r"versions.jax: was \"0.0.1\""):
        train(tiny(), folder)


def test_metrics_without_a_manifest_are_refused(whole, tmp_path):
    folder = copied(whole, tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match="no manifest"):
        train(tiny(), folder)


def test_another_device_layout_needs_the_option_that_the_message_names(whole, tmp_path):
    folder = copied(whole, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["layout"]["num_devices"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match=r"pass --allow-layout-change \(in Python allow_layout_change=True\)"):
        train(tiny(steps=8), folder)
    for _ in range(2):  # and the report goes on saying so
        train(tiny(steps=8), folder, allow_layout_change=True)
        assert (folder / "report.html").read_text().count("bits may differ") == 1


def test_a_finished_run_of_another_device_layout_is_returned_as_it_is_and_one_without_its_end_is_not(whole, tmp_path):
    folder = copied(whole, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["layout"]["num_devices"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def written():
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "report.html")]
        return {path: path.read_bytes() for path in files if path.suffix != ".png"}

    before, said = written(), []
    assert train(tiny(), folder, say=said.append) == folder and written() == before
    assert said[0].startswith("note: it was finished on another layout (layout.num_devices: was 7, now ")
    assert "true return" in "\n".join(said)
    with pytest.raises(RunFolderError, match="was run on another layout"):
        train(tiny(seeds=4), folder)
    summary = json.loads((folder / "summary.json").read_text())
    for older in (summary | {"steps": 5}, {}):  # as a kill after the last checkpoint of an extension leaves it
        (folder / "summary.json").write_text(json.dumps(older))
        with pytest.raises(RunFolderError, match="was run on another layout"):
            train(tiny(), folder)
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(folder / "checkpoints" / "000000-000002" / "7")
    with pytest.raises(RunFolderError, match="was run on another layout"):
        train(tiny(), folder)


@pytest.mark.parametrize("config", [None, {}, {"seeds": 3}, "gridworld"])
def test_what_configure_did_not_make_cannot_be_trained(config, tmp_path):
    with pytest.raises(OptionError, match=r"config is .*; required: what configure returns"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_parameters_of_a_seed_that_diverged_come_with_a_warning(tmp_path):
    config = cheap(steps=4, reward_step_size=1e38, reward_optimizer="sgd")
    folder = train(config, tmp_path / "run")
    steps = (load_run(folder).status.values[0, 1] != DIVERGED).sum()
    with pytest.warns(UserWarning, match=f"seed 1 at point 0 of .* diverged in outer step {steps + 1}: its parameters"):
        params = load_params(folder, 1)
    assert np.all(np.isfinite(params.reward))


def test_the_name_of_a_run_depends_on_what_is_computed_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "prepare", lambda *arguments: [])  # compiles
    monkeypatch.setattr(driver, "run_cohorts", lambda *arguments: (None, []))
    monkeypatch.setattr(driver, "finish", lambda *arguments: None)
    name = train(tiny()).name
    assert name.startswith("garnet-bilevel-")
    more: dict = {}
    for change in ({"steps": 9}, {"seeds": 4}, {"chunk": "all"}):
        more |= change
        assert train(tiny(**more)).name == name
    assert train(tiny(sigma=(0.3,))).name != name


STOPPED = {
    "converged": ({"gradient_tolerance": 1e9, "patience": 2}, 1),
    "diverged": ({"reward_step_size": 1e38, "reward_optimizer": "sgd"}, 2),
}


@pytest.mark.parametrize("how", STOPPED)
def test_when_every_lane_has_stopped_the_rest_costs_nothing(tmp_path, monkeypatch, how):
    options, status = STOPPED[how]
    written = []
    honest = cohort.write_metrics
    monkeypatch.setattr(cohort, "write_metrics", lambda *arguments: (written.append(arguments[2]), honest(*arguments)))
    numbers = result(train(cheap(**options), tmp_path / "run"))
    assert max(written) < 6  # chunks of two steps begin at 0, 2, 4 and 6: the last one was not computed
    assert numbers["status"].shape == (2, 3, 7)
    np.testing.assert_array_equal(numbers["status"][..., max(written) + 1 :], status)
    np.testing.assert_array_equal(numbers["gradient_evaluations"][..., max(written) + 2 :], 0)
    np.testing.assert_array_equal(numbers["gradient_evaluations"][..., 0], 3)
    assert_same_bits(numbers, result(train(cheap(chunk="all", **options), tmp_path / "at_once")))


def test_a_run_that_another_process_holds_is_refused(whole, tmp_path):
    folder = copied(whole, tmp_path)
    with open_run(folder), pytest.raises(RunFolderError, match=r"is held by process \d+ on .*; one process at a time"):
        train(tiny(), folder)


def test_killed_at_any_moment_it_resumes_bit_for_bit(tmp_path):
    folder, longer = tmp_path / "killed", tiny(steps=60)
    words = {name: " ".join(map(str, np.atleast_1d(value))) for name, value in (TINY | {"steps": 60}).items()}
    command = [sys.executable, "-m", "experiments", "train", "--world", "garnet", "--out", str(folder)]
    command += [part for name, value in words.items() for part in ("--" + name.replace("_", "-"), *value.split())]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics, deadline = folder / "metrics" / "000000-000002", time.monotonic() + 300
    while len(list(metrics.glob("*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (folder / "summary.json").exists()
    assert_same_bits(result(train(longer, folder)), result(train(longer, tmp_path / "whole")))
