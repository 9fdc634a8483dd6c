"""Records on the disk: NamedTuples of arrays, numbers, texts and dictionaries, each in one .npz file and read back by type.

A record's fields may be annotated as bool, int, float, str, an array, `X | None`, dict[K, V], tuple[X, ...], tuple[X, Y],
list[X] and other records. Arrays keep their bits and types; the rest is JSON, an entry beside them. Nothing is unpickled.
"""

import json
import os
from collections.abc import Callable
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
    """Returns the record in `<folder>/<name>.npz` if it is whole, or says why not and writes what `compute` returns."""
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
    text = json.dumps(_encoded(record, kind, arrays))
    entries = {str(i): array for i, array in enumerate(arrays)}
    write_arrays(folder, name, {JSON: np.frombuffer(text.encode(), np.uint8), **entries})


def read_record(path: Path, kind: type[Record]) -> Record:
    """Returns the record that was written to that path.

    Raises:
        ValueError: the file is missing, damaged, or holds another kind of record; the message is one line.
    """
    arrays = read_arrays(path)
    try:
        return _decoded(json.loads(arrays.pop(JSON).tobytes()), kind, arrays)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it holds no {kind.__name__}: {error}".splitlines()[0]) from error


def _encoded(value: Any, kind: Any, arrays: list[np.ndarray]) -> Any:
    """Returns the value as JSON: a list for what holds others, and for an array its place in `arrays`, to which it goes."""
    kind = _chosen(kind, value)
    if kind in PLAIN:
        return None if value is None else kind(value)
    if hasattr(kind, "_fields") and not isinstance(value, kind):
        raise TypeError(f"a record holds {type(value).__name__} where {kind.__name__} is annotated")
    parts = list(value.items()) if isinstance(value, dict) else value
    kinds = _kinds(kind, parts)
    if kinds is not None:
        return [_encoded(part, of, arrays) for part, of in zip(parts, kinds, strict=True)]
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"a record holds {type(value).__name__} where an array of numbers is annotated")
    arrays.append(array)
    return len(arrays) - 1


def _decoded(value: Any, kind: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Returns what `_encoded` was given, from what it returned."""
    kind = _chosen(kind, value)
    if kind in PLAIN:
        return None if value is None else kind(value)
    kinds = _kinds(kind, value)
    if kinds is None:
        return arrays[str(value)]
    parts = [_decoded(part, of, arrays) for part, of in zip(value, kinds, strict=True)]
    return kind(*parts) if hasattr(kind, "_fields") else get_origin(kind)(parts)


def _kinds(kind: Any, parts: Any) -> list[Any] | None:
    """Returns the annotation of each part of a record, tuple or list, or each pair of a dictionary; None for an array."""
    if hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        return [hints[name] for name in kind._fields]
    inner, origin = get_args(kind), get_origin(kind)
    if origin is dict:
        return [tuple[inner]] * len(parts)
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return [inner[0]] * len(parts)
    return list(inner) if origin is tuple else None


def _chosen(kind: Any, value: Any) -> Any:
    """Returns the annotation itself, or, of a union with None, that of its members that the value is of."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return NoneType if value is None else next(x for x in get_args(kind) if x is not NoneType)
