"""A run goes on from its own files alone: those of another run, group or step are named and never used."""

import json
import os
import pathlib
import shutil
import zlib

import jax
import numpy as np
import pytest

from bilevel.checkpoint import CheckpointError
from experiments import configure, load_params, load_run, train
from experiments.__main__ import main
from experiments.files import RunFolderError, read_arrays, write_arrays
from experiments.runs import cohort, driver, metrics
from experiments.runs.folder import owner_of

# What tensorstore left unread is collected where nobody sees it, except for pytest.
pytestmark = [
    pytest.mark.usefixtures("quick_runs"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OPTIONS = {"states": 3, "actions": 2, "successors": 2, "policy": "table", "reward": "table", "gradients": "exact"}
OPTIONS |= {"segment_length": 2, "num_policy_steps": 1, "seeds": 2, "chunk": "2", "width": 2, "devices": 1}
STEPS, HALF = 10, 6
GROUP = "000000-000001"


def tiny(**options):
    """A configuration whose run takes a second once it is compiled."""
    return configure("garnet", "alternating", **(OPTIONS | {"steps": STEPS} | options))


def result(folder) -> dict[str, np.ndarray]:
    """Every metric, and the learned parameters of the last seed."""
    run = load_run(folder)
    params = load_params(folder, int(run.seed[-1]))
    return {name: run[name].values for name in run} | {f"leaf {i}": x for i, x in enumerate(jax.tree.leaves(params))}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def go_on(folder, **options) -> list[str]:
    """Runs to the end; the notes that were said, each of one line."""
    said: list[str] = []
    train(tiny(**options), folder, say=said.append)
    notes = [line for line in said if line.startswith("note: ")]
    assert all("\n" not in note for note in notes)
    return [note for note in notes if "git." not in note]


def refused(folder, capsys, **options) -> str:
    """The one line with which the command is refused; nothing in the folder has changed then."""
    before = contents(folder)
    words = OPTIONS | {"steps": STEPS} | options
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    capsys.readouterr()
    assert main(["train", "--world", "garnet", "--algorithm", "alternating", *flags, "--out", str(folder)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bilevel: ")]
    assert len(lines) == 1
    after = contents(folder)
    assert {path for path in before | after if before.get(path) != after.get(path)} <= {"manifest.json", "lock"}
    return lines[0]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a copy of a checkpoint or of a file of metrics where there may be one."""
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Folders of runs that were stopped after step 6: `ours`, a `twin` of the same options, and one of `another` seed."""
    home, honest = tmp_path_factory.mktemp("halves"), cohort.Checkpoints.save

    def save(checkpoints, step, state):
        honest(checkpoints, step, state)
        if step == HALF:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.Checkpoints, "save", save)
        for name, options in {"ours": {}, "twin": {}, "another": {"seed": 1}}.items():
            with pytest.raises(KeyboardInterrupt):
                train(tiny(**options), home / name)
    return home


@pytest.fixture(scope="module")
def whole(tmp_path_factory, halves):
    """The result of an undisturbed run."""
    return result(train(tiny(), tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def half(halves, tmp_path):
    """A copy of `ours`, of one's own."""
    return pathlib.Path(shutil.copytree(halves / "ours", tmp_path / "half"))


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["another/checkpoints/{}/6", "twin/checkpoints/{}/6", "ours/checkpoints/{}/2"])
@pytest.mark.parametrize("step", [6, 8, 10])
def test_a_checkpoint_of_another_run_or_step_is_named_and_passed_over(halves, half, whole, source, step):
    replace(halves / source.format(GROUP), half / "checkpoints" / GROUP / str(step))
    (note,) = go_on(half)
    assert note.startswith(f"note: checkpoint {step} in ") and "was passed over: it " in note
    assert_same_bits(result(half), whole)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/manifest.ocdbt", "state/_METADATA"])
@pytest.mark.parametrize("replaced_by", [os.mkfifo, lambda path: path.symlink_to(path)], ids=["pipe", "loop"])
def test_a_pipe_or_a_circle_of_links_in_a_checkpoint_is_named_and_not_waited_for(
    half, whole, capsys, name, replaced_by
):
    path = half / "checkpoints" / GROUP / "6" / name
    path.unlink()
    replaced_by(path)
    assert f"{path} is no file" in refused(half, capsys)
    with pytest.raises(CheckpointError, match="is no file"):
        load_params(half, 0)
    shutil.rmtree(half / "checkpoints" / GROUP / "6")
    go_on(half)
    assert_same_bits(result(half), whole)


def test_a_checkpoint_that_is_a_link_is_named_before_anything_is_computed(half, whole, capsys):
    path = half / "checkpoints" / GROUP / "2"
    path.rename(half.parent / "2")
    path.symlink_to(half.parent / "2")
    assert f"{path} is a link" in refused(half, capsys)
    path.unlink()
    (half / "checkpoints" / GROUP / "x").symlink_to("nowhere")  # none that will be removed
    (note,) = go_on(half)
    assert note.endswith(f"checkpoints/{GROUP}/x")
    assert_same_bits(result(half), whole)


def test_parameters_come_from_the_run_s_own_checkpoint_with_a_warning_of_another(halves, half):
    wanted = load_params(half, 0)
    replace(halves / "another" / "checkpoints" / GROUP / "6", half / "checkpoints" / GROUP / "8")
    with pytest.warns(UserWarning, match="checkpoint 8 in .* it is of run "):
        found = load_params(half, 0)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(RunFolderError, match="no checkpoint of seed 0 yet"):
        load_params(half, 0)
    assert not (half / "checkpoints").exists()


def test_files_of_another_group_are_named_and_not_used(tmp_path, halves):
    folder, fresh = (pathlib.Path(shutil.copytree(halves / "ours", tmp_path / name)) for name in ("run", "fresh"))
    for run in (folder, fresh):
        assert not go_on(run) and not go_on(run, seeds=4)
    assert json.loads((folder / "manifest.json").read_text())["groups"] == [[0, 2], [2, 2]]
    replace(folder / "checkpoints" / GROUP / "10", folder / "checkpoints" / "000002-000003" / "10")
    replace(folder / "metrics" / GROUP / "00000006.npz", folder / "metrics" / "000002-000003" / "00000006.npz")
    first, second = go_on(folder, seeds=4)
    assert "checkpoint 10 in " in first and "seeds 000000-000001, not of run " in first
    assert "00000006.npz is of run " in second and second.endswith("what follows step 6 is computed again")
    assert_same_bits(result(folder), result(fresh))


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["another/metrics/{}/00000004.npz", "twin/metrics/{}/00000004.npz", "ours/metrics/{}/00000002.npz"]
)
def test_from_metrics_of_another_run_or_step_on_all_is_computed_again(halves, half, whole, source):
    path = half / "metrics" / GROUP / "00000004.npz"
    replace(halves / source.format(GROUP), path)
    (note,) = go_on(half)
    assert note.startswith(f"note: {path} is of run ") and note.endswith("what follows step 4 is computed again")
    assert_same_bits(result(half), whole)


@pytest.mark.parametrize("name", ["another", "twin"])
def test_metrics_from_before_the_oldest_checkpoint_are_refused_if_they_are_another_run_s(
    halves, half, whole, capsys, name
):
    path = half / "metrics" / GROUP / "00000000.npz"
    content = path.read_bytes()
    replace(halves / name / "metrics" / GROUP / "00000000.npz", path)
    line = refused(half, capsys)
    assert f"{path} is of run " in line and "no checkpoint of step 0 or before is left" in line
    path.write_bytes(content)
    assert not go_on(half)
    assert_same_bits(result(half), whole)


def test_a_finished_run_notices_too(tmp_path, halves, whole):
    folder = pathlib.Path(shutil.copytree(halves / "ours", tmp_path / "run"))
    go_on(folder)
    replace(folder / "metrics" / GROUP / "00000006.npz", folder / "metrics" / GROUP / "00000008.npz")
    with pytest.raises(RunFolderError, match=r"00000008.npz is of run .*, step 6, not of run"):
        load_run(folder)
    (note,) = go_on(folder)
    assert "what follows step 8 is computed again" in note
    assert_same_bits(result(folder), whole)


def test_checkpoints_without_metrics_are_refused(half, whole, capsys):
    shutil.move(half / "metrics", half.parent / "metrics")
    line = refused(half, capsys)
    assert f"{half}/metrics/{GROUP} ends at step 0, 6 are required, and no checkpoint of step 0 or before" in line
    shutil.move(half.parent / "metrics", half / "metrics")
    assert not go_on(half)
    assert_same_bits(result(half), whole)


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_that_was_copied_elsewhere_goes_on_and_keeps_its_identity(half, halves, whole):
    owner = owner_of(halves / "ours", GROUP)
    assert owner != owner_of(halves / "twin", GROUP) and len(owner) == len(f"run {'0' * 32}, seeds {GROUP}")
    assert not go_on(half)
    assert_same_bits(result(half), whole)
    assert not go_on(half, seeds=3, steps=STEPS + 2)
    assert owner_of(half, GROUP) == owner and load_run(half).sizes["seed"] == 3


def test_what_lies_about_is_named_and_no_seed_is_computed_for_it(half, whole):
    for name in ("000002-000004", "000005-000003", "000001-000003", "000000-000000"):
        (half / "checkpoints" / name).mkdir()
        shutil.copytree(half / "metrics" / GROUP, half / "metrics" / name)
    (half / "checkpoints" / "000007-000009").write_text("a file")
    strange = ["notes.npz", "._00000000.npz", "00000002 (conflicted copy).npz"]
    for name in strange:
        shutil.copy(half / "metrics" / GROUP / "00000002.npz", half / "metrics" / GROUP / name)
    shutil.copytree(half / "checkpoints" / GROUP / "6", half / "checkpoints" / GROUP / "6 (copy)")
    (note,) = go_on(half)
    assert note.startswith(f"note: ignored in {half}, for it is not of this run: metrics/000000-000000, ")
    assert note.endswith(" and 8 more")
    assert_same_bits(result(half), whole)


@pytest.mark.parametrize("kind", ["metrics", "checkpoints"])
def test_new_seeds_adopt_no_files_and_a_refused_extension_leaves_the_run_as_it_was(half, whole, capsys, kind):
    stray = half / kind / "000002-000003"
    shutil.copytree(half / kind / GROUP, stray)
    assert f"{stray} would be taken for those of seeds that are new" in refused(half, capsys, seeds=4)
    shutil.rmtree(stray)
    assert not go_on(half)
    assert_same_bits(result(half), whole)


def test_a_damaged_manifest_is_not_advised_to_be_removed_and_a_missing_one_is_named(half):
    content = (half / "manifest.json").read_bytes()
    (half / "manifest.json").write_bytes(content[: len(content) // 2])
    for action in (load_run, driver.report, lambda folder: load_params(folder, 0)):
        with pytest.raises(RunFolderError, match=r"manifest\.json cannot be read") as caught:
            action(half)
        assert "restore it from a copy" in str(caught.value) and "remove" not in str(caught.value)
    (half / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match=r"not of a run without identity, for no manifest\.json names one"):
        load_run(half)


def test_a_run_that_has_computed_nothing_yet_takes_no_seeds_from_folders_that_lie_about(half, whole):
    for name in ("metrics", "checkpoints"):
        shutil.rmtree(half / name)
    for name in ("000000-000000", "000003-000005", GROUP):
        (half / "checkpoints" / name).mkdir(parents=True)
    go_on(half)
    assert_same_bits(result(half), whole)


def test_files_without_a_manifest_are_refused(half, capsys):
    (half / "manifest.json").unlink()
    assert "has metrics and checkpoints but no manifest.json" in refused(half, capsys)
    shutil.rmtree(half / "metrics")
    assert "has checkpoints but no manifest.json" in refused(half, capsys)


def test_a_file_where_a_group_has_its_checkpoints_is_refused(half, capsys):
    shutil.rmtree(half / "checkpoints" / GROUP)
    (half / "checkpoints" / GROUP).write_text("a file")
    assert f"checkpoints/{GROUP}" in refused(half, capsys)


@pytest.mark.parametrize("damage", [{"identity": 5}, {"identity": "0" * 32}, {"groups": [[0, 3]]}, {"groups": "all"}])
def test_a_manifest_of_other_origin_is_refused(half, capsys, damage):
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps(manifest | damage))
    refused(half, capsys)


def unseal(folder) -> None:
    """Leaves what a run left before there were identities."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("identity", "groups")})
    )
    for path in (folder / "metrics" / GROUP).iterdir():
        arrays = {name: x for name, x in read_arrays(path).items() if name not in (metrics.OWNER, metrics.DIGEST)}
        write_arrays(path.parent, path.name, arrays | {metrics.DIGEST: metrics.digest_of_arrays(arrays)})
    for path in (folder / "checkpoints" / GROUP).glob("*/_CHECKPOINT_METADATA"):
        content = json.loads(path.read_text())
        leaves = json.dumps(json.loads(content["custom_metadata"]["record"])["leaves"])
        content["custom_metadata"] = {"leaves": leaves, "crc32": zlib.crc32(leaves.encode())}
        path.write_text(json.dumps(content))


def test_a_run_from_before_there_were_identities_goes_on_and_is_told_so(half, halves, whole):
    unseal(half)
    (half / "checkpoints" / "000002-000004").mkdir()
    for _ in range(2):
        first, second = go_on(half)
        assert "was begun before runs had an identity" in first and "checkpoints/000002-000004" in second
        assert_same_bits(result(half), whole)
    replace(halves / "another" / "checkpoints" / GROUP / "6", half / "checkpoints" / GROUP / "12")
    assert any("it is of run " in note and "not of a run without identity" in note for note in go_on(half))


# A folder that goes away ----------------------------------------------------------------------------------------------


def delete(folder):
    """Deletes a folder into which a checkpoint is being written."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def meanwhile(monkeypatch, step, action):
    """Does something once the metrics of the chunk that begins at `step` are written, and no save goes on."""
    honest, save, saving = cohort.write_metrics, cohort.Checkpoints.save, []

    def begin_to_save(checkpoints, *rest):
        save(checkpoints, *rest)
        saving[:] = [checkpoints]

    def write(folder, group, first, arrays):
        honest(folder, group, first, arrays)
        if first == step:
            for checkpoints in saving:  # a save in the background may make its folders after they were deleted
                checkpoints.wait()
            action()

    monkeypatch.setattr(cohort.Checkpoints, "save", begin_to_save)
    monkeypatch.setattr(cohort, "write_metrics", write)


@pytest.mark.parametrize("step", [6, 8])
def test_a_folder_that_is_deleted_meanwhile_is_told_and_not_made_anew(half, monkeypatch, step):
    meanwhile(monkeypatch, step, lambda: delete(half))
    with pytest.raises((RunFolderError, CheckpointError), match=r"moved or deleted|deleted, moved") as caught:
        train(tiny(), half)
    assert "\n" not in str(caught.value) and not half.exists()


def test_a_folder_that_was_moved_meanwhile_goes_on_where_it_is(half, whole, monkeypatch):
    elsewhere = half.with_name("elsewhere")
    with monkeypatch.context() as patch, pytest.raises((RunFolderError, CheckpointError), match="moved"):
        meanwhile(patch, 6, lambda: os.rename(half, elsewhere))
        train(tiny(), half)
    assert not half.exists() and not go_on(elsewhere)
    assert_same_bits(result(elsewhere), whole)


def test_a_run_that_was_begun_in_its_place_is_left_alone(half, halves, monkeypatch):
    def begin_anew():
        delete(half)
        shutil.copytree(halves / "another", half)

    with (
        monkeypatch.context() as patch,
        pytest.raises((RunFolderError, CheckpointError), match=r"begun anew|moved or deleted"),
    ):
        meanwhile(patch, 6, begin_anew)
        train(tiny(), half)
    assert not [note for note in go_on(half, seed=1) if "8 in" not in note]
    assert_same_bits(result(half), result(train(tiny(seed=1), half.with_name("fresh"))))


def test_metrics_that_are_deleted_meanwhile_are_told(half, monkeypatch):
    meanwhile(monkeypatch, 6, lambda: shutil.rmtree(half / "metrics"))
    with pytest.raises(RunFolderError, match="holds no metrics of the steps before 8 any more"):
        train(tiny(), half)
    assert not (half / "metrics").exists()
