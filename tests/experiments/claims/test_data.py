"""Records come back from the disk as they were, by their types, and nothing else does."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from experiments.claims.data import keep, read_record, write_record


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


def test_what_was_kept_is_not_computed_again_and_what_is_damaged_is_with_a_line(tmp_path):
    calls, said = [], []

    def compute():
        calls.append(1)
        return Part(np.ones(2), "x")

    for _ in range(2):
        assert keep(tmp_path, "part ε = 0.1", Part, compute, said.append).name == "x"
    assert len(calls) == 1 and not said
    (tmp_path / "part ε = 0.1.npz").write_bytes(b"PK")
    assert keep(tmp_path, "part ε = 0.1", Part, compute, said.append).values.tolist() == [1, 1]
    assert len(calls) == 2 and len(said) == 1 and "part ε = 0.1.npz is damaged" in said[0]
