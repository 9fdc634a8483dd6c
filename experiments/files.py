"""Files, read and written: whole or not at all, through no link, and whatever is wrong with one is an error of one line.

A folder may come from somebody else: what is written goes where its name says, and what is read may be anything.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_JSON = 2**24  # bytes of a JSON file; the parser may need some forty times as many
MOST_ARRAYS = 2**31  # bytes that a user's arrays may unpack to
MOST_HEADER = 2**14  # bytes before the numbers of an array
DEEPEST = 16  # levels to which the values of a JSON file may nest
LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.tmp")  # names of files that are being written
STALE = 3600.0  # seconds after which such a file is what a killed process has left
WORDS = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


class RunFolderError(Exception):
    """A run folder, or a file in it, cannot be used as asked; the message is one line."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns an OSError of the block into a RunFolderError that says what cannot be done, and what is required."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename!r} is a link, through which nothing is written" if error.errno == errno.ELOOP else error
        raise RunFolderError(
            f"{what}: {why}; a writable folder on a disk with room is required: name another, or mend this one"
        ) from error


def write_json(folder: Path, name: str, value: Any) -> None:
    """Writes a value, of which `as_json` is what is read back, as `<folder>/<name>`; see `write_atomically`."""
    write_atomically(folder, name, (json.dumps(as_json(value), indent=2) + "\n").encode())


def write_arrays(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes `<folder>/<name>`, an .npz whatever the arrays are called, complete or not at all; see `write_atomically`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # numpy.savez refuses an array that is called `file`
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    write_atomically(folder, name, buffer.getvalue())


def write_figure(folder: Path, name: str, figure: "Figure", dpi: float | None = None) -> None:
    """Writes a figure as `<folder>/<name>`, a PNG, in so many dots per inch or its own; see `write_atomically`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or "figure")
    write_atomically(folder, name, buffer.getvalue())


def write_atomically(folder: Path, name: str, content: bytes) -> None:
    """Writes `<folder>/<name>`, which after a kill or a loss of power is the old file or the new one.

    The folder may be reached through links; subfolders in the name, as in `figures/cost.png`, may not be links; both
    are created if need be. A link of that name is replaced, not followed. What killed processes have left in the same
    folder is taken away. Raises RunFolderError where a subfolder is a link, something in the way is no file, or the
    disk refuses.
    """
    *subfolders, last = Path(name).parts
    temporary = f".{secrets.token_hex(8)}.tmp"
    with refusing(f"{folder / name} cannot be written"), _inside(folder, subfolders) as directory:
        try:
            with open(temporary, "xb", opener=lambda path, flags: _own(path, flags, directory)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _refuse_folder(last, directory)
            os.replace(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)
        _clear(directory, os.stat(last, dir_fd=directory, follow_symlinks=False).st_mtime)


def _refuse_folder(name: str, directory: int) -> None:
    """Raises OSError where a folder lies under that name in the directory."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError("there is a folder of that name: move it away")


def make_folder(path: str | os.PathLike[str], name: str = "") -> Path:
    """The folder `<path>/<name>`, in which files can be created; it is made if need be. The path may be reached through
    links, the subfolders of the name not. Raises RunFolderError where it cannot be created or written."""
    folder = Path(path) / name
    probe = f".{secrets.token_hex(8)}.tmp"
    with refusing(f"{folder} cannot hold results"), _inside(Path(path), Path(name).parts) as directory:
        os.close(_own(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, directory))
        os.unlink(probe, dir_fd=directory)
    return folder


@contextmanager
def _inside(folder: Path, subfolders: Collection[str]) -> Iterator[int]:
    """A descriptor of the innermost of the subfolders, each created if need be, none of them a link."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in subfolders:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=directory)
                os.fsync(directory)
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise OSError(f"{name} is a link, through which nothing is written")
            inner = _own(name, os.O_RDONLY | os.O_DIRECTORY, directory)
            os.close(directory)
            directory = inner
        yield directory
    finally:
        os.close(directory)


def _own(path: str, flags: int, directory: int) -> int:
    """A descriptor of what lies in the directory under that name itself, not of what a link of that name leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o777 if flags & os.O_DIRECTORY else 0o666, dir_fd=directory)


def _clear(directory: int, now: float) -> None:
    """Takes away what killed processes have left; `now` is by the clock that dates the directory's files."""
    for name in filter(LEFTOVER.fullmatch, os.listdir(directory)):
        with suppress(OSError):  # another process may do the same
            if now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime > STALE:
                os.unlink(name, dir_fd=directory)


def as_json(value: Any) -> Any:
    """As JSON has it: lists for tuples and arrays, Python's numbers, texts for infinities, and None for what is no
    number."""
    if isinstance(value, dict):
        return {key: as_json(x) for key, x in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def canonical_json(value: Any) -> str:
    """The value as JSON of one spelling: keys sorted, no spaces."""
    return json.dumps(as_json(value), sort_keys=True, separators=(",", ":"))


def digest(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def open_file(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file, without waiting; raises OSError where it cannot be opened, or is a folder, a pipe or a
    device."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fspath(path)!r} is no file")
    return descriptor


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """All that a file holds. Raises OSError where it is not there, is no file, or holds more than `most` bytes."""
    with open(open_file(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it holds more than {most:,} bytes")
    return content


def digest_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file. Raises OSError where it is not there, or is no file."""
    with open(open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(folder: Path, name: str, shape: Any = dict, missing: Any = None) -> Any:
    """The value in `<folder>/<name>`, of the type `shape`, see `misfit`; `missing`, unless it is None, where there is
    no such file. Raises RunFolderError where the file is missing, is not JSON, is larger or nests deeper than any that
    is written here, or holds something of another shape."""
    path = folder / name
    try:
        value = json.loads(read_bytes(path, MOST_JSON), parse_int=_integer)
        _check_depth(value, DEEPEST)
        if found := misfit(value, shape):
            raise ValueError(found)
        return value
    except (FileNotFoundError, NotADirectoryError) as error:
        if missing is not None:
            return missing
        raise RunFolderError(
            f"{folder} is not a run: {name} cannot be read ({error}); the folder of a run is required, "
            "as in runs/<world>-<algorithm>-<hash>"
        ) from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        why = "it nests too deep" if isinstance(error, RecursionError) else str(error) or type(error).__name__
        remedy = "restore it from a copy" + (", or remove it" if missing is not None else "")
        raise RunFolderError(
            f"{path} cannot be read ({why}); required: the file as it was written: {remedy}"
        ) from error


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        shown = digits if len(digits) <= 24 else f"a whole number of {len(digits):,} characters, {digits[:20]}…,"
        raise ValueError(f"{shown} does not fit into 64 bits")
    return int(digits)


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, dict | list):
        return
    if not levels:
        raise RecursionError
    for x in value.values() if isinstance(value, dict) else value:
        _check_depth(x, levels - 1)


def misfit(value: Any, shape: Any, place: str = "") -> str:
    """Why a JSON value is not of a type, as in `sizes[1] is a text; required: a whole number`; "" if it is. A shape is
    None, bool, int, float (whole numbers too), str, list, dict, list[…] or dict[str, …] of such, unions of them, or a
    TypedDict, beside whose keys there may be others; `place` is where the value stands."""
    union = get_origin(shape) in (Union, UnionType)
    shapes = {_outer(x): x for x in (get_args(shape) if union else (shape,))}
    kind = float if type(value) is int and int not in shapes else type(value)
    if kind not in shapes:
        required = " or ".join(WORDS[x] for x in shapes)
        return f"{place or 'it'} is {WORDS[type(value)]}; required: {required}"
    inner = shapes[kind]
    if is_typeddict(inner):
        if absent := sorted(inner.__required_keys__ - value.keys()):
            return f"{place or 'it'} lacks {', '.join(absent)}"
        parts = [(value[key], x, _dotted(place, key)) for key, x in get_type_hints(inner).items() if key in value]
    elif not get_args(inner):
        return ""
    elif kind is dict:
        parts = [(x, get_args(inner)[1], _dotted(place, key)) for key, x in value.items()]
    else:
        parts = [(x, get_args(inner)[0], f"{place}[{i}]") for i, x in enumerate(value)]
    return next((found for part in parts if (found := misfit(*part))), "")


def _outer(shape: Any) -> type:
    return NoneType if shape is None else dict if is_typeddict(shape) else get_origin(shape) or shape


def _dotted(place: str, key: str) -> str:
    return f"{place}.{key[:80]}" if place else key[:80]


def read_arrays(
    path: str | os.PathLike[str], names: Collection[str] | None = None, most: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, none of them of Python's objects: those `names` that it has, or all. Raises
    ValueError, of one line, where the file is missing, damaged, of another kind, or unpacks to more than `most` bytes,
    or, since what `write_arrays` writes is not compressed, than it has on the disk."""
    try:
        with open(open_file(path), "rb") as file, zipfile.ZipFile(file) as archive:
            members = {x.filename.removesuffix(".npy"): x for x in archive.infolist()}
            members = {name: x for name, x in members.items() if names is None or name in names}
            most = os.fstat(file.fileno()).st_size if most is None else most
            if sum(x.file_size for x in members.values()) > most:
                raise ValueError(f"it unpacks to more than {most:,} bytes")
            return {name: _unpack(archive, member) for name, member in members.items()}
    except Exception as error:  # which one, depends on the byte that is wrong
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array of a member, of which no more is unpacked than its entry in the zip directory says."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise ValueError(f"{member.filename} is compressed in another way than numpy does")
    content = _stored(archive, member) if member.compress_type == zipfile.ZIP_STORED else _inflated(archive, member)
    width = 4 if content[6:7] == b"\2" else 2  # bytes in which a version of the format says how long its header is
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    shape, fortran_order, dtype = _header(bytes(content[: min(start, MOST_HEADER)]))
    if dtype.hasobject or dtype.itemsize * math.prod(shape) != len(content) - start:
        raise ValueError(f"{member.filename} is no array of type {dtype} and shape {list(shape)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    content = bytearray()
    with archive.open(member) as packed:
        while piece := packed.read(2**20):
            content += piece
    return content


def _stored(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    """The bytes of a member that is not compressed, sooner than `archive.open` has them: a run has many small arrays."""
    file = archive.fp
    file.seek(member.header_offset)
    local = file.read(30)
    file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
    content = bytearray(file.read(member.file_size))
    if local[:4] != b"PK\3\4" or len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError(f"{member.filename} does not match its checksum")
    return content


@lru_cache(maxsize=1024)  # parsing takes longer than reading a small array, and files of one kind repeat their headers
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    return read_header(file)
