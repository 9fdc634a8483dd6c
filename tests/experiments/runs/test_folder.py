"""The run folder: one writer, whole files, each step once, and no mixing of experiments."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr

from experiments.files import RunFolderError, read_json, write_json
from experiments.runs.folder import compare_manifests, config_hash, group_name, make_manifest, open_run, run_name
from experiments.runs.metrics import load_run, read_metrics, write_metrics

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = {"world": {"states": 4, "discount": 0.9}, "sizes": (8, 8), "radius": float("inf"), "num_steps": 10, "seeds": 2}
SWEPT = {"sigma": [0.1, 0.2, 0.3], "rule": ["a"]}
WRITTEN = CONFIG | SWEPT | {"sizes": [8, 8], "radius": "inf"}  # as JSON has it


def chunk(first: int, last: int, seeds: range = range(2), num_hyper: int = 3) -> dict[str, np.ndarray]:
    """Metrics of steps first to last − 1 that tell where they come from: 10000 · hyper + 100 · seed + step."""
    hyper, seed, step = np.meshgrid(np.arange(num_hyper), np.array(seeds), np.arange(first, last), indexing="ij")
    value = (10000 * hyper + 100 * seed + step).reshape(-1, last - first)
    return {"loss": value.astype(np.float32), "labels": value.astype(np.int32)}


def expected(last: int, seeds: range = range(2), num_hyper: int = 3) -> np.ndarray:
    return chunk(0, last, seeds, num_hyper)["labels"].reshape(num_hyper, len(seeds), last)


def refusal(action, *arguments) -> str:
    """The message with which an action is refused, which is one line."""
    with pytest.raises(RunFolderError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def enter(path: pathlib.Path) -> None:
    with open_run(path):
        pass


@pytest.fixture
def run(tmp_path):
    """A run of two chunks, in one group of two seeds."""
    with open_run(tmp_path / "run") as folder:
        write_json(folder, "config.json", CONFIG | SWEPT)
        write_json(folder, "sweep.json", {"names": ["sigma", "rule"], "values": [[0.1, "a"], [0.2, "a"], [0.3, "a"]]})
        write_metrics(folder, group_name(0, 2), 0, chunk(0, 5))
        write_metrics(folder, group_name(0, 2), 5, chunk(5, 10))
    return folder


def test_the_hash_of_a_config_is_that_of_its_values():
    shuffled = {"seeds": 2, "num_steps": 10, "radius": np.inf, "sizes": [8, 8], "world": {"discount": 0.9, "states": 4}}
    assert config_hash(CONFIG) == config_hash(shuffled)
    assert config_hash(CONFIG) != config_hash(CONFIG | {"world": {"states": 4, "discount": 0.95}})
    assert config_hash({"x": 1})[:8] == "5041bf1f"  # of {"x":1}; folders of old runs are found by it


def test_a_longer_run_has_the_name_of_the_shorter_one():
    longer = CONFIG | {"num_steps": 20, "seeds": 9}
    assert run_name("garnet", "dpo", CONFIG, ("num_steps", "seeds")) == run_name(
        "garnet", "dpo", longer, ("num_steps", "seeds")
    )
    assert run_name("garnet", "dpo", CONFIG) != run_name("garnet", "dpo", longer)
    assert run_name("garnet", "dpo", CONFIG) == f"garnet-dpo-{config_hash(CONFIG)[:8]}"


HOLDER = """
import sys
from experiments.runs.folder import open_run
with open_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert f"held by process {holder.pid} on" in refusal(enter, tmp_path / "run")
        holder.kill()
    enter(tmp_path / "run")
    assert (tmp_path / "run" / "lock").read_text().startswith(f"bilevel run, last held by process {os.getpid()} on ")


def test_a_run_can_be_entered_again_and_a_stranger_s_folder_cannot(run, tmp_path):
    enter(run)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("all my work")
    assert "is not empty and is not a run" in refusal(enter, tmp_path / "thesis")
    (tmp_path / "thesis" / "lock").write_text("of another program")
    assert "is not empty and is not a run" in refusal(enter, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "lock").read_text() == "of another program"


def test_a_run_killed_before_it_signed_its_lock_can_be_entered(tmp_path):
    (tmp_path / "empty").mkdir()
    enter(tmp_path / "empty")
    (tmp_path / "unsigned").mkdir()
    (tmp_path / "unsigned" / "lock").touch()
    enter(tmp_path / "unsigned")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is no folder; the folder of a run" in refusal(enter, tmp_path / "file")
    assert "inside cannot be a run folder" in refusal(enter, tmp_path / "file" / "inside")


def test_a_write_that_dies_halfway_leaves_the_old_file(run, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_json(run, "config.json", {"other": 1})
        with pytest.raises(KeyboardInterrupt):
            write_metrics(run, group_name(0, 2), 5, chunk(0, 5))
    assert not [*run.rglob("*.tmp")]
    assert read_json(run, "config.json") == WRITTEN
    np.testing.assert_array_equal(read_metrics(run, 10)[0]["labels"], expected(10))
    write_json(run, "config.json", {"other": 1})
    assert read_json(run, "config.json") == {"other": 1}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_write_returns(run, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        act = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, act=act, **kwargs: (calls.append(name), act(*args, **kwargs))
        )
    write_json(run, "config.json", CONFIG)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_told_in_one_line(run, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device; a writable folder on a disk with room" in refusal(write_json, run, "x.json", 1)


def test_a_file_that_is_no_object_is_refused(run):
    (run / "manifest.json").write_text("[]")
    assert "manifest.json cannot be read (it is a list; required: an object)" in refusal(
        read_json, run, "manifest.json"
    )


@pytest.fixture(scope="module")
def manifest():
    return make_manifest(CONFIG, width=4, chunk=5, precision="float32")


def changed(manifest: dict, path: str, value: object) -> dict:
    copy = json.loads(json.dumps(manifest))
    *parents, last = path.split(".")
    place = copy
    for parent in parents:
        place = place[parent]
    place[last] = value
    return copy


def test_a_manifest_survives_its_file_and_names_what_the_bits_depend_on(manifest, tmp_path):
    clean = changed(manifest, "git.dirty", False)
    write_json(tmp_path, "manifest.json", clean)
    assert compare_manifests(read_json(tmp_path, "manifest.json"), clean) == ([], [], [])
    assert manifest["versions"]["jax"] and manifest["versions"]["orbax-checkpoint"]
    assert manifest["layout"]["platform"] == "cpu" and manifest["layout"]["num_devices"] >= 1
    assert (manifest["width"], manifest["chunk"], manifest["precision"]) == (4, 5, "float32")


def test_a_manifest_names_the_packages_and_the_content_of_the_files_that_a_run_uses(tmp_path):
    path = tmp_path / "world.npz"

    def manifest(content):
        path.write_bytes(content)
        return make_manifest(CONFIG, 4, 5, "float32", packages=("pytest", "no such package"), files=[str(path)])

    one, other = manifest(b"1"), manifest(b"2")
    assert one["versions"]["pytest"] == pytest.__version__ and one["versions"]["no such package"] is None
    assert manifest(b"1") == one
    refused, layout, _ = compare_manifests(one, other)
    assert len(refused) == 1 and str(path) in refused[0] and not layout


@pytest.mark.parametrize(
    ("kind", "path", "value", "line"),
    [
        ("refused", "config.world.discount", 0.8, "config.world.discount: was 0.9, now 0.8"),
        ("refused", "config.sizes", [8, 9], "config.sizes: was [8,8], now [8,9]"),
        ("refused", "config.extra", 1, "config.extra: was absent, now 1"),
        ("refused", "versions.jax", "0.1", 'versions.jax: was "{was}", now "0.1"'),
        ("refused", "precision", "float64", 'precision: was "float32", now "float64"'),
        ("refused", "width", 8, "width: was 4, now 8"),
        ("warnings", "chunk", 8, "chunk: was 5, now 8"),
        ("refused", "python", "3.99.1", 'python: was "{was}", now "3.99.1"'),
        ("layout", "layout.num_devices", 64, "layout.num_devices: was {was}, now 64"),
        ("layout", "layout.platform", "gpu", 'layout.platform: was "cpu", now "gpu"'),
        ("layout", "layout.xla_flags", "--x", 'layout.xla_flags: was "{was}", now "--x"'),
        ("warnings", "git.commit", "abc", "git.commit: was {was}, now"),
    ],
)
def test_each_difference_is_named_and_placed(manifest, kind, path, value, line):
    old = changed(changed(manifest, "git.dirty", False), "git.commit", "0")
    differences = compare_manifests(old, changed(old, path, value))
    was = old
    for part in path.split("."):
        was = was.get(part, "")
    was = json.dumps(was) if path == "git.commit" else was
    (told,) = getattr(differences, kind)
    assert told.startswith(line.format(was=was))
    assert sum(map(len, differences)) == 1


def test_a_patch_of_python_and_uncommitted_changes_are_warnings(manifest):
    major, minor, patch = manifest["python"].split(".")
    old = changed(manifest, "git.dirty", True)
    differences = compare_manifests(old, changed(old, "python", f"{major}.{minor}.{int(patch) + 1}"))
    assert not differences.refused and not differences.layout
    assert [line.split(":")[0] for line in differences.warnings] == ["python", "git.dirty"]


def test_what_is_extendable_may_grow_and_may_not_shrink(manifest):
    old = changed(manifest, "git.dirty", False)
    longer, shorter = changed(old, "config.num_steps", 11), changed(old, "config.num_steps", 9)
    assert compare_manifests(old, longer, ("num_steps", "seeds")) == ([], [], [])
    assert compare_manifests(old, longer).refused == ["config.num_steps: was 10, now 11"]
    assert compare_manifests(old, shorter, ("num_steps",)).refused == [
        "config.num_steps: was 10, now 9; it may only grow: ask for 10 or more"
    ]


def test_chunks_join_to_every_step_once(run):
    metrics, seeds = read_metrics(run, 10)
    np.testing.assert_array_equal(metrics["labels"], expected(10))
    assert metrics["labels"].dtype == np.int32 and metrics["loss"].dtype == np.float32
    assert seeds.tolist() == [0, 1]


@pytest.mark.parametrize("last_step", [3, 5, 7])
def test_steps_beyond_the_restored_one_are_dropped(run, last_step):
    np.testing.assert_array_equal(read_metrics(run, last_step)[0]["labels"], expected(last_step))


def test_a_replayed_chunk_replaces_itself_and_all_that_followed(run):
    replayed = {name: -array for name, array in chunk(3, 6).items()}
    write_metrics(run, group_name(0, 2), 3, replayed)
    labels = read_metrics(run)[0]["labels"]
    np.testing.assert_array_equal(labels[..., :3], expected(3))
    np.testing.assert_array_equal(labels[..., 3:], -expected(6)[..., 3:])


def test_of_overlapping_chunks_the_one_that_starts_later_counts(run):
    path = run / "metrics" / group_name(0, 2) / "00000000.npz"
    longer = run / "longer"
    write_metrics(longer, "000000-000001", 0, {name: array * 0 for name, array in chunk(0, 8).items()})
    os.replace(longer / "metrics" / "000000-000001" / "00000000.npz", path)
    labels = read_metrics(run)[0]["labels"]
    assert labels.shape == (3, 2, 10) and not labels[..., :5].any()
    np.testing.assert_array_equal(labels[..., 5:], expected(10)[..., 5:])


def test_a_hole_is_refused_by_file(run):
    write_metrics(run, group_name(0, 2), 12, chunk(12, 15))
    message = refusal(read_metrics, run)
    assert "00000012.npz follows a hole: steps 10 to 11 are missing" in message
    np.testing.assert_array_equal(read_metrics(run, 10)[0]["labels"], expected(10))
    (run / "metrics" / group_name(0, 2) / "00000000.npz").unlink()
    assert "00000005.npz follows a hole: steps 0 to 4 are missing" in refusal(read_metrics, run)


def test_fewer_steps_than_asked_for_are_refused(run):
    assert "000000-000001 ends at step 10, 11 are required" in refusal(read_metrics, run, 11)


def test_every_damaged_byte_of_an_array_is_noticed_and_the_file_named(run):
    path = run / "metrics" / group_name(0, 2) / "00000005.npz"
    whole = path.read_bytes()
    for place in range(100, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_metrics(run)[0]["loss"], expected(10))  # a byte without a meaning
        except RunFolderError as error:
            assert "00000005.npz is damaged" in str(error)
    path.write_bytes(whole[: len(whole) // 2])
    assert "00000005.npz is damaged" in refusal(read_metrics, run)


def test_values_that_another_program_wrote_are_refused(run):
    path = run / "metrics" / group_name(0, 2) / "00000005.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"loss": arrays["loss"] + 1})
    assert "00000005.npz is damaged" in refusal(read_metrics, run)


def test_chunks_with_other_metrics_or_lanes_are_refused(run):
    write_metrics(run, group_name(0, 2), 10, {"loss": chunk(10, 12)["loss"]})
    assert "00000010.npz does not fit" in refusal(read_metrics, run)
    write_metrics(run, group_name(0, 2), 10, chunk(10, 12, num_hyper=2))
    assert "00000010.npz does not fit" in refusal(read_metrics, run)
    assert "one shape [lanes, steps] is required" in refusal(write_metrics, run, "0-1", 0, {"x": np.zeros(3)})
    assert "metrics of shapes set() were given" in refusal(write_metrics, run, "0-1", 0, {})


def test_more_seeds_join_as_another_group(run):
    write_metrics(run, group_name(2, 3), 0, chunk(0, 10, range(2, 5)))
    metrics, seeds = read_metrics(run, 10)
    np.testing.assert_array_equal(metrics["labels"], expected(10, range(5)))
    assert seeds.tolist() == [0, 1, 2, 3, 4]
    write_metrics(run, group_name(4, 2), 0, chunk(0, 10, range(4, 6)))
    assert "holds a seed in two groups" in refusal(read_metrics, run)


def test_of_groups_of_unequal_length_the_common_steps_are_read_with_a_warning(run):
    write_metrics(run, group_name(2, 1), 0, chunk(0, 4, range(2, 3)))
    with pytest.warns(UserWarning, match="all seeds have 4 of 10 steps"):
        metrics, _ = read_metrics(run)
    np.testing.assert_array_equal(metrics["labels"], expected(4, range(3)))
    assert "000002-000002 ends at step 4, 10 are required" in refusal(read_metrics, run, 10)


def test_a_run_loads_with_named_dimensions_and_swept_coordinates(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_run(run)
    assert dict(data.sizes) == {"hyper": 3, "seed": 2, "step": 10}
    assert set(data.data_vars) == {"loss", "labels"} and data.loss.dims == ("hyper", "seed", "step")
    assert data.sigma.dims == ("hyper",) and data.sigma.values.tolist() == [0.1, 0.2, 0.3]
    assert data.rule.values.tolist() == ["a", "a", "a"]
    assert data.seed.values.tolist() == [0, 1] and data.step.values.tolist() == list(range(10))
    assert data.labels.sel(seed=1, step=7).values[data.sigma.values == 0.3].item() == 20107
    assert json.loads(data.attrs["config"]) == WRITTEN


def test_a_run_is_written_to_netcdf_and_read_back_as_it_was_with_what_is_installed_already(run, tmp_path):
    write_json(run, "score.json", {"name": "steps survived", "unit": "steps", "low": None, "high": 500})
    write_metrics(run, group_name(0, 2), 0, chunk(0, 10) | {"true_score": np.ones((6, 10))})
    data = load_run(run)
    data.to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as read:
        xr.testing.assert_identical(read.load(), data)


def test_a_sweep_that_ends_in_infinity_is_loaded(run):
    write_json(run, "config.json", CONFIG | {"radius": [0.5, 2.0, "inf"]})
    write_json(run, "sweep.json", {"names": ["radius"], "values": [[0.5], [2.0], [np.inf]]})
    assert load_run(run).radius.values.tolist() == [0.5, 2.0, np.inf]


def test_a_run_without_a_sweep_has_one_point(tmp_path):
    with open_run(tmp_path / "run") as folder:
        write_json(folder, "config.json", CONFIG)
        write_metrics(folder, group_name(0, 2), 0, chunk(0, 5, num_hyper=1))
    assert dict(load_run(folder).sizes) == {"hyper": 1, "seed": 2, "step": 5}


def test_a_named_score_is_loaded_with_its_name_unit_and_bounds(tmp_path):
    write_json(tmp_path, "config.json", CONFIG)
    write_metrics(tmp_path, group_name(0, 2), 0, {"true_score": np.ones((2, 3)), "loss": np.ones((2, 3))})
    assert load_run(tmp_path).true_score.attrs == {}
    write_json(tmp_path, "score.json", {"name": "steps survived", "unit": "steps", "low": None, "high": 500})
    data = load_run(tmp_path)
    assert data.true_score.attrs == {"long_name": "steps survived", "units": "steps", "valid_max": 500}
    assert data.loss.attrs == {}


def test_what_is_not_a_run_or_has_no_metrics_is_not_loaded(run, tmp_path):
    assert "nowhere is not a run: config.json cannot be read" in refusal(load_run, tmp_path / "nowhere")
    write_json(tmp_path / "begun", "config.json", CONFIG)
    assert "begun holds no metrics" in refusal(load_run, tmp_path / "begun")
    write_json(run, "sweep.json", {"names": ["sigma"], "values": [[1.0]]})
    assert "sweep.json holds 1 points and the metrics 3" in refusal(load_run, run)


@pytest.mark.parametrize(
    "values", [[[0.2, "a"], [0.1, "a"], [0.3, "a"]], [[0.1, "a"], [7.0, "a"], [0.3, "a"]], [[0.1], [0.2], [0.3]]]
)
def test_a_sweep_that_is_not_what_was_asked_for_is_not_loaded(run, values):
    write_json(run, "sweep.json", {"names": ["sigma", "rule"], "values": values})
    assert "sweep.json does not fit config.json" in refusal(load_run, run)
