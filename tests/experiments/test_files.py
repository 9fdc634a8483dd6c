"""Files of a run: written whole and through no link; read within bounds, and whatever is wrong with one is one line."""

import bz2
import os
import pathlib
import re
import tracemalloc
import zipfile
from typing import TypedDict

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.files import (
    MOST_ARRAYS,
    STALE,
    RunFolderError,
    as_json,
    canonical_json,
    digest,
    make_folder,
    misfit,
    read_arrays,
    read_json,
    write_arrays,
    write_atomically,
    write_figure,
    write_json,
)
from experiments.runs.folder import group_name, open_run

ROOT = pathlib.Path(__file__).parents[2]
GROUP = group_name(0, 2)


@pytest.fixture
def run(tmp_path):
    """A run's folder beside one that is somebody else's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "dear.txt").write_text("dear")
    with open_run(tmp_path / "run") as folder:
        return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.json", "x.json.tmp", ".probe"])
def test_a_link_where_a_file_is_to_be_is_replaced_and_what_it_leads_to_is_left(run, name):
    dear = run.parent / "outside" / "dear.txt"
    (run / name).symlink_to(dear if name != ".probe" else run.parent / "outside" / "new")
    write_json(run, "x.json", 1)
    make_folder(run)
    assert contents(run.parent / "outside") == {str(dear): b"dear"}
    assert (run / "x.json").read_text() == "1\n" and not (run / "x.json").is_symlink()


def test_nothing_is_written_through_a_subfolder_that_is_a_link(run):
    for name in ("linked", f"inner/{GROUP}"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).symlink_to(run.parent / "outside")
        for write in (
            lambda name=name: write_arrays(run, f"{name}/x.npz", {"x": np.zeros(1)}),
            lambda name=name: write_figure(run, f"{name}/x.png", Figure()),
            lambda name=name: make_folder(run, name),
        ):
            with pytest.raises(RunFolderError, match="is a link, through which nothing is written"):
                write()
    assert [*(run.parent / "outside").iterdir()] == [run.parent / "outside" / "dear.txt"]


def test_the_folder_itself_may_be_reached_through_a_link(run, tmp_path):
    (tmp_path / "short").symlink_to(run)
    write_json(tmp_path / "short", "figures/x.json", 1)
    assert read_json(run, "figures/x.json", int) == 1


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link"])
def test_a_lock_that_is_no_file_of_the_run_is_refused(run, kind):
    dear, lock = run.parent / "outside" / "dear.txt", run / "lock"
    dear.write_text(lock.read_text())  # of a run of somebody else
    lock.unlink()
    make = {"link": lambda: lock.symlink_to(dear), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}
    (make | {"hard link": lambda: lock.hardlink_to(dear)})[kind]()
    before = dear.read_text()
    with pytest.raises(RunFolderError, match=r"lock.* (is a link|is no file|has another name)"), open_run(run):
        pass
    assert dear.read_text() == before


def test_what_killed_writers_left_is_taken_away_once_it_is_old(run):
    left = [run / f".{digit * 16}.tmp" for digit in "0a"]
    for path in left:
        path.write_text("half")
    os.utime(left[0], (1, os.stat(run / "lock").st_mtime - 2 * STALE))
    write_json(run, "x.json", 1)
    assert not left[0].exists() and left[1].exists()  # another process may be writing that one


def test_a_refused_write_leaves_nothing_behind(run):
    (run / "x.json").mkdir()
    before = sorted(run.rglob("*"))
    with pytest.raises(RunFolderError, match=r"x\.json cannot be written"):
        write_json(run, "x.json", 1)
    with pytest.raises(RunFolderError, match=r"lock/x\.json cannot be written"):
        write_atomically(run, "lock/x.json", b"")
    assert sorted(run.rglob("*")) == before


# Reading --------------------------------------------------------------------------------------------------------------


class Shape(TypedDict, total=False):
    """An object of a test."""

    sizes: list[int]
    label: str | None


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        ({"a": 1, "b": 2.5}, dict[str, float], ""),
        ({"sizes": [1], "label": None, "else": {}}, Shape, ""),
        ({"a": True}, dict[str, float], "a is true or false; required: a number"),
        ({"sizes": [1, "2"]}, Shape, "sizes[1] is a text; required: a whole number"),
        ({"label": 3}, Shape, "label is a whole number; required: a text or null"),
        ([[1.5], [{}]], list[list[float | str]], "[1][0] is an object; required: a number or a text"),
        (1.5, int, "it is a number; required: a whole number"),
        ({}, TypedDict("Named", {"world": str}), "it lacks world"),
    ],
)
def test_a_value_of_another_shape_is_named_with_its_place(value, shape, said):
    assert misfit(value, shape) == said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'{"a": "\xff"}', "decode"),
        (b"[]", "it is a list; required: an object"),
        (b'{"a": 1' + b"0" * 400 + b"}", "does not fit into 64 bits"),
        (b'{"a": -9223372036854775809}', "-9223372036854775809 does not fit into 64 bits"),
        (b"[" * 60_000 + b"]" * 60_000, "it nests too deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "it nests too deep"),
        (b" " * 2**24 + b"{}", "it holds more than 16,777,216 bytes"),
    ],
)
def test_json_that_no_run_wrote_is_refused_with_the_reason(tmp_path, content, why):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        read_json(tmp_path, "x.json")
    assert why in str(caught.value) and str(tmp_path / "x.json") in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_numbers_of_64_bits_are_read_to_their_ends(tmp_path):
    ends = [-(2**63), 2**63 - 1]
    write_json(tmp_path, "x.json", {"ends": ends})
    assert read_json(tmp_path, "x.json") == {"ends": ends}


def test_infinities_are_texts_what_is_no_number_is_null_and_arrays_are_lists(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": (1, np.int64(2)),
        "c": np.array([[1.0, np.nan]]),
        "d": [float("inf"), "inf", True],
    }
    expected = {"a": 0.5, "b": [1, 2], "c": [[1.0, None]], "d": ["inf", "inf", True]}
    assert as_json(value) == expected
    write_json(tmp_path, "x.json", value)
    assert read_json(tmp_path, "x.json") == expected and "NaN" not in (tmp_path / "x.json").read_text()


def test_equal_values_have_one_spelling_and_one_digest():
    one, other = {"b": (1, 2), "a": np.float64(0.1)}, {"a": 0.1, "b": [1, 2]}
    assert canonical_json(one) == canonical_json(other) == '{"a":0.1,"b":[1,2]}'
    # of `printf abc | sha256sum`
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_no_other_file_of_the_project_writes_or_reads_json_and_arrays_by_hand():
    by_hand = r"\b(json\.(load|dump)|np\.(load|save\w*)|pickle\.\w+|os\.replace)\(|\.write_(text|bytes)\(|\bzipfile\b"
    paths = [path for part in ("bilevel", "envs", "experiments") for path in (ROOT / part).rglob("*.py")]
    found = {path: re.search(by_hand, path.read_text()) for path in paths if path != ROOT / "experiments/files.py"}
    assert not {path.name: match[0] for path, match in found.items() if match}


def test_arrays_may_have_any_name_that_a_file_may(tmp_path):
    arrays = {"file": np.arange(3), "self": np.ones((2, 0)), "x.y": np.array(2.5)}
    write_arrays(tmp_path, "x.npz", arrays)
    with np.load(tmp_path / "x.npz") as found:
        assert {name: found[name].tolist() for name in found} == {name: x.tolist() for name, x in arrays.items()}


def peak_of_refusal(path, **options) -> tuple[str, int]:
    """The reason for which arrays are refused, and the bytes that were allocated until then."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            read_arrays(path, **options)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_archive_is_unpacked_within_its_bound(tmp_path):
    path, member = tmp_path / "x.npz", "x.npy"
    np.savez_compressed(path, x=np.zeros(2**22))
    said, peak = peak_of_refusal(path)
    assert said.startswith("it unpacks to more than") and peak < 2**20
    assert read_arrays(path, most=2**25 + 1000)["x"].nbytes == 2**25
    content = path.read_bytes()  # now a directory that says less than there is, at both places where it says it
    size = (2**25 + 128).to_bytes(4, "little")
    assert content.count(size) in (1, 2)
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    said, peak = peak_of_refusal(path)
    assert "CRC" in said and peak < 2**22
    with zipfile.ZipFile(path, "w") as archive:  # bz2 unpacks 45 bytes to 900,000
        archive.writestr(member, bytes(10**7), zipfile.ZIP_BZIP2)
    assert len(bz2.compress(bytes(10**7))) < 1000
    said, peak = peak_of_refusal(path, most=MOST_ARRAYS)
    assert "compressed in another way" in said and peak < 2**20
    header = np.lib.format.header_data_from_array_1_0(np.zeros(1)) | {"shape": (2**40,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open(member, "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    said, peak = peak_of_refusal(path)
    assert "is no array of" in said and peak < 2**20


def test_user_s_arrays_that_unpack_to_too_much_or_are_a_pipe_get_one_line(tmp_path, capsys, monkeypatch):
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}.items():
        monkeypatch.setenv(name, value)
    np.savez(tmp_path / "bomb.npz", policy=np.zeros(1), initial=np.zeros(1))
    content = bytearray((tmp_path / "bomb.npz").read_bytes())
    for i in range(len(content)):
        if content[i : i + 4] == b"PK\1\2":  # an entry of the directory, which says here how much it unpacks to
            content[i + 24 : i + 28] = (2**31 + 1).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.npz")
    for name, why in {"bomb": "it unpacks to more than 2,147,483,648 bytes", "pipe": "is no file"}.items():
        for option in (["--world", "file", "--mdp"], ["--reference"]):
            assert main(["train", *option, str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / "run")]) == 2
            said = capsys.readouterr().err
            assert why in said and said.count("\n") == 1 and "numpy.savez" in said
