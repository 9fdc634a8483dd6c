"""Records come back from the disk as they were, by their types, and nothing else does."""

import math
import os
from typing import NamedTuple

import numpy as np
import pytest

from experiments.claims.data import keep, read_record, write_record
from experiments.files import RunFolderError


class Part(NamedTuple):
    """What a record may hold within itself."""

    values: np.ndarray
    name: str


class Whole(NamedTuple):
    """A field of every kind."""

    array: np.ndarray
    number: float
    count: int
    flag: bool
    text: str
    pair: tuple[float, int]
    many: tuple[Part, ...]
    listed: list[str]
    parts: dict[str, Part]
    by_pair: dict[tuple[str, float], np.ndarray]
    absent: Part | None
    given: Part | None


def whole():
    part = Part(np.arange(3.0), "σ")
    return Whole(
        array=np.array([[1, 2]], np.int32),
        number=np.float64(0.1),
        count=7,
        flag=True,
        text="Φ < 1",
        pair=(math.inf, 2),
        many=(part, part._replace(values=np.array(True))),
        listed=["a", "b"],
        parts={"file": part},
        by_pair={("a", 0.1): np.array([np.nan, -0.0], np.float32)},
        absent=None,
        given=part,
    )


def test_a_record_comes_back_with_its_types_bits_and_order(tmp_path):
    write_record(tmp_path, "whole.npz", whole(), Whole)
    found = read_record(tmp_path / "whole.npz", Whole)
    assert repr(found) == repr(whole()._replace(number=0.1)) and type(found.number) is float
    assert found.array.dtype == np.int32 and found.many[1].values.dtype == bool
    assert found.by_pair["a", 0.1].tobytes() == whole().by_pair["a", 0.1].tobytes()
    assert found.given.values is not found.many[0].values


@pytest.mark.parametrize("damage", ["half", "empty", "another kind", "a folder", "a text"])
def test_what_is_no_such_record_is_an_error_of_one_line(tmp_path, damage):
    path = tmp_path / "whole.npz"
    if damage == "another kind":
        write_record(tmp_path, path.name, Part(np.zeros(2), ""), Part)
    elif damage == "a folder":
        path.mkdir()
    else:
        write_record(tmp_path, path.name, whole(), Whole)
        content = path.read_bytes()
        path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "a text": b"not a record"}[damage])
    with pytest.raises(ValueError) as error:
        read_record(path, Whole)
    assert len(str(error.value).splitlines()) == 1


def test_a_field_that_is_not_what_it_is_annotated_as_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a record holds object where an array of numbers is annotated"):
        write_record(tmp_path, "x.npz", whole()._replace(array=object()), Whole)
    with pytest.raises(TypeError, match="a record holds str where Part is annotated"):
        write_record(tmp_path, "x.npz", whole()._replace(given="no"), Whole)
    assert not [*tmp_path.iterdir()]


def computing():
    """A function that computes a part, and the list of its calls."""
    calls = []

    def compute():
        calls.append(1)
        return Part(np.arange(6.0).reshape(2, 3), f"call {len(calls)}")

    return compute, calls


def silently(line):
    """Says nothing."""


def test_a_part_is_computed_once_and_read_as_it_was(tmp_path):
    compute, calls = computing()
    for _ in range(2):
        part = keep(tmp_path / "new", "table, of one", Part, compute, silently)
        assert type(part) is Part and part.name == "call 1" and part.values.shape == (2, 3)
    keep(tmp_path / "new", "another ε = 0.1", Part, compute, silently)
    assert len(calls) == 2
    assert {x.name for x in (tmp_path / "new").iterdir()} == {"table, of one.npz", "another ε = 0.1.npz"}


def test_a_part_that_is_damaged_or_incomplete_is_computed_anew_with_a_line(tmp_path):
    (compute, calls), said = computing(), []
    keep(tmp_path, "part", Part, compute, said.append)
    path = tmp_path / "part.npz"
    whole = path.read_bytes()
    cut = b"", b"nothing of the kind", whole[:20], whole[:-100], whole.replace(b"json", b"jsom")
    turned = (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 7))
    for damaged in (*cut, *turned):
        path.write_bytes(damaged)
        found = keep(tmp_path, "part", Part, compute, said.append)  # or a byte without a meaning was turned
        assert found.values.tolist() == [[0, 1, 2], [3, 4, 5]] and found.name.startswith("call ")
    assert len(said) == len(calls) - 1 > len(whole) / 7 / 2
    assert all(line.startswith("part.npz is damaged or of something else (") for line in said)
    for values in ({"value": np.zeros(3)}, {"value": np.array([None])}):  # no record, a pickle
        np.savez(path, **values)
        before = len(calls)
        keep(tmp_path, "part", Part, compute, silently)
        assert len(calls) == before + 1
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"):
        keep(tmp_path, "part", Part, compute, silently)


def test_a_part_that_was_not_finished_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    compute, calls = computing()
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, "part", Part, stop, silently)
    assert not [*tmp_path.iterdir()]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        keep(tmp_path, "part", Part, compute, silently)
    keep(tmp_path, "part", Part, compute, silently)
    assert len(calls) == 2
