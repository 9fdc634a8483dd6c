"""Records on the disk: NamedTuples of arrays, numbers, texts and dictionaries, each in one .npz file and read back by type.

A record's fields may be annotated as bool, int, float, str, an array, `X | None`, dict[K, V], tuple[X, ...], tuple[X, Y],
list[X] and other records. Arrays keep their bits and types; the rest is JSON, an entry beside them. Nothing is unpickled.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from experiments.files import read_arrays, write_arrays

JSON = "json"  # the entry that holds everything but the arrays, as bytes
PLAIN = (bool, int, float, str, NoneType)

Record = TypeVar("Record", bound=tuple)


def keep(
    folder: Path, name: str, kind: type[Record], compute: Callable[[], Record], say: Callable[[str], None]
) -> Record:
    """The record in `<folder>/<name>.npz` if that is there and whole; otherwise what `compute` returns, written there.

    Args:
        folder: created if need be.
        name: of the part.
        kind: of the record.
        compute: called at most once.
        say: hears why a file that is there is of no use.
    """
    path = folder / f"{name}.npz"
    if os.path.lexists(path):
        try:
            return read_record(path, kind)
        except ValueError as error:
            say(f"{path.name} is damaged or of something else ({error}): computed again")
    write_record(folder, path.name, compute(), kind)
    return read_record(path, kind)


def write_record(folder: Path, name: str, record: Record, kind: type[Record]) -> None:
    """Writes `<folder>/<name>`, complete or not at all.

    Raises:
        TypeError: a field holds something else than its annotation says, or what no record may hold.
        RunFolderError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_encoded(record, kind, arrays, kind.__name__))
    entries = {str(i): array for i, array in enumerate(arrays)}
    write_arrays(folder, name, {JSON: np.frombuffer(text.encode(), np.uint8), **entries})


def read_record(path: Path, kind: type[Record]) -> Record:
    """The record that was written there.

    Raises:
        ValueError: the file is missing, damaged, or holds another kind of record; the message is one line.
    """
    arrays = read_arrays(path)
    try:
        return _decoded(json.loads(arrays.pop(JSON).tobytes()), kind, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"it holds no {kind.__name__}: {error}".splitlines()[0]) from error


def _encoded(value: Any, kind: Any, arrays: list[np.ndarray], place: str) -> Any:
    """The value as JSON, in which an array is its index in `arrays`, and a dictionary a list of pairs."""
    kind = _chosen(kind, value is None)
    if hasattr(kind, "_fields"):
        if getattr(value, "_fields", None) != kind._fields:
            raise TypeError(f"{place} is of type {type(value).__name__}; required: {kind.__name__}")
        hints = get_type_hints(kind)
        return {name: _encoded(getattr(value, name), hints[name], arrays, f"{place}.{name}") for name in kind._fields}
    inner = get_args(kind)
    match get_origin(kind) or kind:
        case _ if kind in PLAIN:
            return None if kind is NoneType else kind(value)
        case t if t is dict:
            return [
                [_encoded(x, of, arrays, place) for x, of in zip(pair, inner, strict=True)] for pair in value.items()
            ]
        case t if t in (tuple, list):
            return [_encoded(x, of, arrays, f"{place}[{i}]") for i, (x, of) in enumerate(_with_kinds(value, inner))]
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{place} is of type {type(value).__name__}; required: an array of numbers, as annotated")
    arrays.append(array)
    return len(arrays) - 1


def _decoded(value: Any, kind: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What `_encoded` was given."""
    kind = _chosen(kind, value is None)
    if hasattr(kind, "_fields"):
        if {*value} != {*kind._fields}:
            raise ValueError(f"its fields are {', '.join(value)}")
        hints = get_type_hints(kind)
        return kind(**{name: _decoded(value[name], hints[name], arrays) for name in kind._fields})
    inner = get_args(kind)
    match get_origin(kind) or kind:
        case _ if kind in PLAIN:
            return None if kind is NoneType else kind(value)
        case t if t is dict:
            return {_decoded(key, inner[0], arrays): _decoded(x, inner[1], arrays) for key, x in value}
        case t if t in (tuple, list):
            return t(_decoded(x, of, arrays) for x, of in _with_kinds(value, inner))
    return arrays[str(value)]


def _chosen(kind: Any, absent: bool) -> Any:
    """Of a union with None, what the value is; of an array's union with float, an array."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    if absent and NoneType in get_args(kind):
        return NoneType
    present = [x for x in get_args(kind) if x is not NoneType]
    return next((x for x in present if x not in PLAIN), present[0])


def _with_kinds(values: Iterable[Any], kinds: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Each value of a tuple or list with its annotation."""
    values = list(values)
    of_each = [kinds[0]] * len(values) if len(kinds) == 1 or kinds[1:] == (...,) else kinds
    return list(zip(values, of_each, strict=True))
