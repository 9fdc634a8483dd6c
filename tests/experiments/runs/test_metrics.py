"""Files of metrics: of this run, this group and this step or refused by name, and few however long a run is."""

import itertools
import os
import pathlib
import shutil

import numpy as np
import pytest

from experiments import files
from experiments.files import RunFolderError, write_arrays, write_json
from experiments.runs import metrics
from experiments.runs.metrics import DIGEST, check_metrics, read_metrics, strange_metrics, write_metrics

GROUP = "000000-000001"
LENGTH = 5  # steps of a chunk


def chunk(first: int, last: int, version: int = 0) -> dict[str, np.ndarray]:
    """Metrics of steps first to last − 1 of two seeds, which tell version, seed and step."""
    value = 1000 * version + 100 * np.arange(2)[:, None] + np.arange(first, last)
    return {"loss": value.astype(np.float32), "labels": value.astype(np.int32)}


def assert_versions(folder: pathlib.Path, *parts: tuple[int, int], last_step: int | None = None) -> None:
    """That the steps up to each number are those of the version beside it."""
    starts = [0, *(last for last, _ in parts)]
    wanted = [chunk(first, last, version) for first, (last, version) in zip(starts, parts, strict=False)]
    found, _ = read_metrics(folder, last_step)
    for name, array in found.items():
        np.testing.assert_array_equal(array[0], np.concatenate([part[name] for part in wanted], axis=1))


def begin(folder: pathlib.Path, identity: str, groups=((0, 2),)) -> pathlib.Path:
    """The folder of a run that has written nothing but its manifest."""
    write_json(folder, "manifest.json", {"identity": identity, "groups": [list(group) for group in groups]})
    return folder


def write(folder: pathlib.Path, first: int, last: int, version: int = 0, group: str = GROUP) -> None:
    """Writes the steps from first to before last in chunks."""
    for start in range(first, last, LENGTH):
        write_metrics(folder, group, start, chunk(start, min(start + LENGTH, last), version))


def names(folder: pathlib.Path, group: str = GROUP) -> list[str]:
    return sorted(path.name for path in (folder / "metrics" / group).iterdir())


def refusal(action, *arguments) -> str:
    """The message with which an action is refused, which is one line."""
    with pytest.raises(RunFolderError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run of three chunks."""
    folder = begin(tmp_path / "run", "ours")
    write(folder, 0, 15)
    return folder


@pytest.fixture
def merge_four(monkeypatch):
    """Merges after four chunks, and spares the disk."""
    monkeypatch.setattr(metrics, "MERGED", 4)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# Whose they are -------------------------------------------------------------------------------------------------------


def test_a_file_of_another_run_is_named_and_refused(run, tmp_path):
    other = begin(tmp_path / "other", "theirs")
    write(other, 0, 15)
    shutil.copy(other / "metrics" / GROUP / "00000005.npz", run / "metrics" / GROUP)
    found = refusal(read_metrics, run)
    assert "00000005.npz is of run theirs, seeds 000000-000001, step 5, not of run ours, seeds 000000-000001" in found
    assert_versions(run, (5, 0), last_step=5)


@pytest.mark.parametrize(("source", "target"), [(0, 5), (5, 10), (5, 15), (10, 0)])
def test_a_file_under_the_number_of_another_step_is_named_and_refused(run, source, target):
    directory = run / "metrics" / GROUP
    shutil.copy(directory / f"{source:08d}.npz", directory / f"{target:08d}.npz")
    assert f"{target:08d}.npz is of run ours, seeds 000000-000001, step {source}, not of" in refusal(read_metrics, run)


def test_a_file_of_another_group_is_named_and_refused(tmp_path):
    folder = begin(tmp_path, "ours", ((0, 2), (2, 2)))
    for group in (GROUP, "000002-000003"):
        write(folder, 0, 10, group=group)
    shutil.copy(folder / "metrics" / GROUP / "00000005.npz", folder / "metrics" / "000002-000003")
    assert "00000005.npz is of run ours, seeds 000000-000001, step 5, not of run ours, seeds 000002" in refusal(
        read_metrics, folder
    )


def test_merged_files_are_told_apart_too(tmp_path, merge_four):
    folder, other = begin(tmp_path / "run", "ours"), begin(tmp_path / "other", "theirs")
    write(folder, 0, 40)
    write(other, 0, 40)
    first, second = (folder / "metrics" / GROUP / name for name in names(folder))
    assert (first.name, second.name) == ("00000000-00000019.npz", "00000020-00000039.npz")
    kept = second.read_bytes()
    shutil.copy(other / "metrics" / GROUP / second.name, second)
    assert "00000020-00000039.npz is of run theirs" in refusal(read_metrics, folder)
    shutil.copy(first, second)
    assert "00000020-00000039.npz is of run ours, seeds 000000-000001, step 0, not" in refusal(read_metrics, folder)
    second.write_bytes(kept)
    second.rename(second.with_name("00000020-00000044.npz"))
    assert "00000020-00000044.npz is damaged (it holds 20 steps)" in refusal(read_metrics, folder)


def test_a_folder_that_was_copied_elsewhere_is_read_and_written(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "elsewhere")
    write(copy, 15, 20)
    assert_versions(copy, (20, 0))


def test_a_run_from_before_there_were_identities_is_read_and_takes_no_file_of_a_newer_one(run, tmp_path):
    old = tmp_path / "old"
    for first in (0, 5):
        digest = metrics.digest_of_arrays(chunk(first, first + 5))
        write_arrays(old, f"metrics/{GROUP}/{first:08d}.npz", chunk(first, first + 5) | {DIGEST: digest})
    write(old, 10, 20)
    assert_versions(old, (20, 0))
    shutil.copy(old / "metrics" / GROUP / "00000005.npz", run / "metrics" / GROUP)
    assert "00000005.npz is of a run without identity, not of run ours" in refusal(read_metrics, run)
    shutil.copy(run / "metrics" / GROUP / "00000010.npz", old / "metrics" / GROUP)
    assert "00000010.npz is of run ours, seeds 000000-000001, step 10, not of a run without" in refusal(
        read_metrics, old
    )


def test_what_the_program_does_not_write_is_told_and_never_read(run):
    directory = run / "metrics" / GROUP
    assert strange_metrics(directory) == []
    strange = ["-0000005.npz", "._00000000.npz", "00000005 (conflicted copy).npz", "00000010-00000005.npz", "5.npz"]
    strange += ["notes.npz", "٠٠٠٠٠٠٠٥.npz"]
    for name in strange:
        shutil.copy(directory / "00000005.npz", directory / name)
    (directory / ".0123456789abcdef.tmp").write_text("being written")
    assert strange_metrics(directory) == strange
    assert_versions(run, (15, 0))
    write(run, 10, 20, version=1)
    assert_versions(run, (10, 0), (20, 1))
    assert strange_metrics(directory) == strange


def test_groups_are_those_of_the_manifest_and_no_others(run):
    for stranger in ("000000-000000", "000002-000003", "000005-000003"):
        shutil.copytree(run / "metrics" / GROUP, run / "metrics" / stranger)
        (run / "checkpoints" / stranger / "5").mkdir(parents=True)
    assert read_metrics(run)[1].tolist() == [0, 1]


def test_a_group_without_metrics_is_left_out_with_a_warning(tmp_path):
    folder = begin(tmp_path, "ours", ((0, 2), (2, 2)))
    write(folder, 0, 10)
    with pytest.warns(UserWarning, match="seeds 000002-000003 have no metrics"):
        assert read_metrics(folder)[1].tolist() == [0, 1]


@pytest.mark.parametrize("groups", [[[0, 2], [3, 1]], [[0, 2], [1, 2]], [[1, 2]], [[0, 0]], [[0]], [[0, -2]]])
def test_groups_that_do_not_follow_each_other_are_refused(run, groups):
    write_json(run, "manifest.json", {"identity": "ours", "groups": groups})
    assert "holds a seed in two groups, or in none" in refusal(read_metrics, run)


# What may go wrong between checkpoints --------------------------------------------------------------------------------


def test_metrics_are_usable_up_to_the_newest_checkpoint_before_what_is_damaged(run):
    steps = [15, 10, 5]
    assert check_metrics(run, GROUP, steps) == (15, "")
    path = run / "metrics" / GROUP / "00000005.npz"
    path.write_bytes(path.read_bytes()[:-1])
    step, note = check_metrics(run, GROUP, steps)
    assert step == 5 and f"{path} is damaged" in note and note.endswith("what follows step 5 is computed again")
    found = refusal(check_metrics, run, GROUP, [15, 10])
    assert f"{path} is damaged" in found and "no checkpoint of step 5 or before is left" in found
    path.unlink()
    assert "00000010.npz follows a hole: steps 5 to 9 are missing" in check_metrics(run, GROUP, steps)[1]
    shutil.rmtree(run / "metrics")
    assert "ends at step 0, 15 are required" in refusal(check_metrics, run, GROUP, steps)


def test_metrics_that_are_gone_in_the_middle_of_a_run_are_told_at_the_next_write(run):
    shutil.rmtree(run / "metrics")
    found = refusal(write_metrics, run, GROUP, 15, chunk(15, 20))
    assert "holds no metrics of the steps before 15 any more" in found
    assert not (run / "metrics").exists()


# How many files, and what they cost -----------------------------------------------------------------------------------


def test_a_long_run_leaves_few_files_and_each_chunk_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    calls = {"read_arrays": 0, "write_arrays": 0}

    def counted(name, act):
        def call(*arguments):
            calls[name] += 1
            return act(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(metrics, name, counted(name, getattr(metrics, name)))
    folder, count = begin(tmp_path, "ours"), 1234
    write(folder, 0, LENGTH * count)
    assert calls == {"read_arrays": 1200, "write_arrays": count + 12}
    assert len(names(folder)) == 12 + 34
    assert_versions(folder, (LENGTH * count, 0))


def test_chunks_of_before_there_was_merging_are_merged_little_by_little(tmp_path, monkeypatch, merge_four):
    folder = begin(tmp_path, "ours")
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "MERGED", 1000)
        write(folder, 0, 100)
    before = len(names(folder))
    for first in range(100, 140, 5):
        write(folder, first, first + 5)
        assert before - 3 <= len(names(folder)) <= before + 1 and before > 4
        before = len(names(folder))
    assert before <= 10
    assert_versions(folder, (140, 0))


def test_headers_that_many_files_share_are_parsed_once(tmp_path, monkeypatch):
    for first in range(30):
        arrays = {f"metric {i}": np.full((2, 1), first, np.float32) for i in range(20)}
        write_arrays(tmp_path, f"metrics/{GROUP}/{first:08d}.npz", arrays | {DIGEST: metrics.digest_of_arrays(arrays)})
    honest, parsed = np.lib.format.read_array_header_1_0, []

    def parse(file, **options):
        parsed.append(file)
        return honest(file, **options)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", parse)
    files._header.cache_clear()
    np.testing.assert_array_equal(read_metrics(tmp_path)[0]["metric 3"][0, 1], np.arange(30))
    assert len(parsed) == 2  # of metrics and of digests


@pytest.mark.parametrize("step", range(0, 60, 5))
def test_a_run_that_goes_back_into_a_merged_file_keeps_its_beginning_and_drops_the_rest(tmp_path, merge_four, step):
    folder = begin(tmp_path, "ours")
    write(folder, 0, 55)
    write(folder, step, step + 5, version=1)
    assert_versions(folder, (step, 0), (step + 5, 1))
    write(folder, step + 5, 90, version=1)
    assert_versions(folder, (step, 0), (90, 1))
    assert len(names(folder)) <= 8


def test_chunks_of_changing_length_are_merged_each_step_once(tmp_path, merge_four):
    folder, step, version = begin(tmp_path, "ours"), 0, 0
    versions = []
    for back, lengths in ((0, (7, 7, 7, 7, 7, 7)), (9, (2, 2, 2)), (3, (11, 1, 1, 1, 1, 1)), (13, (4, 4, 4, 4))):
        step, version = step - back, version + 1
        versions = [(min(last, step), old) for last, old in versions]
        for length in lengths:
            write_metrics(folder, GROUP, step, chunk(step, step + length, version))
            step += length
        versions.append((step, version))
        assert_versions(folder, *versions)


# A kill at any moment -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a process does not survive."""


def killed_at(monkeypatch, moment: int, action) -> bool:
    """Whether an action was cut short just before its `moment`th change of a folder, after which it makes no other one."""
    left = [moment]

    def until_killed(act):
        def call(*arguments, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return act(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("mkdir", "replace", "unlink"):
            patch.setattr(os, name, until_killed(getattr(os, name)))
        try:
            action()
        except Killed:
            return True
    return False


class Resumed:
    """A run that is killed and goes on: its `n`th part writes version `n`."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.done, self.versions = begin(folder, "ours"), 0, []

    def go_on(self, last: int) -> None:
        """Writes chunks to the last step."""
        for step in range(self.done, last, LENGTH):
            write(self.folder, step, step + LENGTH, len(self.versions))
            self.done = step + LENGTH

    def go_back(self, chunks: int) -> None:
        """To an earlier checkpoint."""
        self.versions.append((self.done, len(self.versions)))
        self.done = max(self.done - chunks * LENGTH, 0)
        self.versions = [(min(last, self.done), version) for last, version in self.versions]

    def check(self) -> None:
        """What was written is there, and what may follow it is in its place."""
        if self.done:
            assert_versions(self.folder, *self.versions, (self.done, len(self.versions)), last_step=self.done)
            labels = read_metrics(self.folder)[0]["labels"][0]
            assert labels.shape[1] >= self.done
            np.testing.assert_array_equal(labels % 1000, chunk(0, labels.shape[1])["labels"])


@pytest.mark.parametrize("back", [0, 1, 3])
def test_killed_before_any_change_of_a_folder_and_once_more_no_step_is_lost_or_doubled(
    tmp_path, monkeypatch, merge_four, back
):
    moments = itertools.count()
    for moment in moments:
        run = Resumed(tmp_path / str(moment))
        died = killed_at(monkeypatch, moment, lambda run=run: run.go_on(45))
        run.check()
        run.go_back(back)
        killed_at(monkeypatch, moment % 17, lambda run=run: run.go_on(60))
        run.check()
        run.go_back(back)
        run.go_on(75)
        run.check()
        assert read_metrics(run.folder)[0]["loss"].shape[-1] == 75 and len(names(run.folder)) <= 10
        if not died:
            break
    assert moment > 20


def test_what_a_killed_merge_has_written_does_not_hide_the_next_one(tmp_path, monkeypatch, merge_four):
    folder = begin(tmp_path, "ours")
    write(folder, 0, 15)

    def die(path):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "unlink", die)
        write(folder, 15, 20)
    assert len(names(folder)) == 5
    write_metrics(folder, GROUP, 15, chunk(15, 17, version=1))
    assert names(folder) == ["00000000-00000016.npz"]
    assert_versions(folder, (15, 0), (17, 1))


def test_no_file_is_removed_through_a_link(run, tmp_path):
    shutil.move(run / "metrics" / GROUP, tmp_path / "elsewhere")
    (run / "metrics" / GROUP).symlink_to(tmp_path / "elsewhere")
    assert "is a link, through which nothing is written" in refusal(write_metrics, run, GROUP, 5, chunk(5, 10))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3
