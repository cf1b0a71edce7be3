"""TorchScript archives (`.pth`) read as data: attributes and tensors of the frozen module, and none of its code.

The archive is a zip file; `data.pkl` in it is a pickle of the module, and `data/<n>` are its tensors' numbers. The
pickle may do little: of all instructions only those are let through that TorchScript writes, no name in it is ever
looked up in Python, and an object of a script class becomes a record of its attributes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.tree import Array, Budget

_MAX_PICKLE: Final = 16 << 20
_MAX_ATTRIBUTES: Final = 1_000_000
_MAX_PATH: Final = 300
_MAX_AXES: Final = 8
_OPCODES: Final = frozenset(
    [
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND"),
        *("APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID"),
        *("REDUCE", "NEWOBJ", "BUILD"),
    ]
)
_DTYPES: Final = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_IS_DATA: Final = re.compile(r"(^|/)(data\.pkl|data/[^/]*)$")
"""Entries of an archive that are read: the pickle and the numbers."""
_LISTS: Final = frozenset(f"build_{kind}list" for kind in ("int", "double", "bool", "tensor"))


class Record:
    """An object of a script class, whichever: its attributes, and none of its methods."""

    __slots__ = ("attributes",)
    attributes: dict[str, Any]

    def __new__(cls) -> Record:
        """Make a record without attributes; the pickle gives none."""
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: object) -> None:
        """Take the attributes; TorchScript writes them as a dict."""
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise pickle.UnpicklingError("an object of it has no attributes")
        self.attributes = state


@dataclass(frozen=True)
class Storage:
    """The numbers of some tensors: an entry of the archive that has not been read yet."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Token:
    """What stands for a name of the pickle; it can be called, and nothing can be set on it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets attributes of {self._name}")

    def __call__(self, *args: Any) -> Any:
        if self._name == "_rebuild_tensor_v2":
            return _tensor(*args[:4])
        if self._name in _LISTS or self._name == "restore_type_tag":
            return args[0]
        if self._name == "OrderedDict" and not args:
            return {}
        raise pickle.UnpicklingError(f"it calls {self._name}")

    def __str__(self) -> str:
        return self._name


def _tensor(storage: object, offset: object, shape: object, stride: object) -> TensorRecord:
    is_sized = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= _MAX_AXES
    numbers = [offset, *shape, *stride] if is_sized else [None]  # type: ignore[misc]
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("it holds a tensor of no shape")
    return TensorRecord(storage, offset, shape, stride)  # type: ignore[arg-type]


class _Unpickler(pickle.Unpickler):
    """Makes records of what the pickle describes."""

    def find_class(self, module: str, name: str) -> Any:
        """Give a stand-in for the few names that are known, and for script classes; anything else is refused."""
        if module.startswith("__torch__.") or module == "__torch__":
            return Record
        if (
            (module == "torch" and name in _DTYPES)
            or (module == "torch._utils" and name == "_rebuild_tensor_v2")
            or (module == "torch.jit._pickle" and (name in _LISTS or name == "restore_type_tag"))
            or (module == "collections" and name == "OrderedDict")
        ):
            return _Token(name)
        raise ModelFileError(f"it refers to {module}.{name}, which no model needs; nothing of it was run")

    def persistent_load(self, pid: object) -> Storage:
        """Describe the entry of the archive that holds the numbers of a tensor."""
        if isinstance(pid, tuple) and len(pid) == 5:
            kind, dtype, key, _, size = pid
            if kind == "storage" and str(dtype) in _DTYPES and isinstance(key, str) and type(size) is int and size >= 0:
                return Storage(_DTYPES[str(dtype)], key, size)
        raise pickle.UnpicklingError("it holds a tensor of an unknown kind")


@dataclass(frozen=True)
class Module:
    """The frozen module of an archive.

    Attributes:
        attributes: those of the module itself that are no tensors and no modules, and numbers of its `atomic_model`.
        tensors: all tensors, by dotted path.
    """

    attributes: dict[str, Any]
    tensors: dict[str, Array]


def check_stored(archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose pickle or numbers are compressed: torch writes none, and a small one takes all memory.

    Raises:
        ModelFileError: an entry is compressed.
    """
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED and _IS_DATA.search(entry.filename):
            raise ModelFileError(f"its entry {entry.filename} is compressed, which PyTorch does not do; it is not read")


def read_archive(path: Path, is_wanted: re.Pattern[str]) -> Module:
    """Read a TorchScript archive; nothing in it is executed.

    Args:
        path: of the file.
        is_wanted: matches the dotted paths of the tensors to read.

    Raises:
        ModelFileError: damaged, hostile, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(pickles) != 1 or len(set(names)) != len(names):
                raise ModelFileError("it is a zip file, but no archive of TorchScript: it has no data.pkl of its own")
            check_stored(archive)
            folder = pickles[0].removesuffix("data.pkl")
            if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
                raise ModelFileError(f"its data.pkl is larger than {_MAX_PICKLE >> 20} MiB; no model needs as much")
            if f"{folder}byteorder" in names and archive.open(f"{folder}byteorder").read(8) != b"little":
                raise ModelFileError("its numbers are stored in big-endian order, which is not supported")
            top = _unpickled(archive.read(pickles[0]))
            tensors = _Tensors(archive, folder)
            found = {name: t for name, t in _tensor_records(top) if is_wanted.fullmatch(name)}
            arrays = {name: tensors.read(name, tensor) for name, tensor in found.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, KeyError) as error:
        with path.open("rb") as stream:
            if stream.read(2) != b"PK":
                raise ModelFileError("it is no archive, as such a model is; is it the right file?") from None
        raise ModelFileError(f"it is cut short or damaged: {error}; copy it again") from None
    plain = {k: v for k, v in top.attributes.items() if isinstance(v, str | int | float | list | tuple)}
    inner = top.attributes.get("atomic_model")
    if isinstance(inner, Record):
        plain |= {f"atomic_model.{k}": v for k, v in inner.attributes.items() if isinstance(v, float)}
    return Module(plain, arrays)


def _unpickled(data: bytes) -> Record:
    """The module, of records."""
    try:
        _check_instructions(data)
        top = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, RecursionError) as e:
        raise ModelFileError(f"its data.pkl is damaged: {' '.join(str(e).split())[:200]}") from None
    if not isinstance(top, Record):
        raise ModelFileError("its data.pkl holds no module")
    return top


def _check_instructions(data: bytes) -> None:
    """Refuse a pickle with instructions that TorchScript does not write."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of odd names
        try:
            for k, (instruction, argument, _) in enumerate(pickletools.genops(data)):
                if instruction.name not in _OPCODES:
                    raise ModelFileError(f"its data.pkl has the instruction {instruction.name}, unknown to TorchScript")
                if instruction.name == "LONG_BINPUT" and (argument or 0) > k:  # the memo would grow to this size
                    raise ModelFileError("its data.pkl is made to fill the memory")
        except Warning as warning:
            raise pickle.UnpicklingError(str(warning)) from None


def _tensor_records(top: Record) -> Iterator[tuple[str, TensorRecord]]:
    """All tensors of a module and of those within it, by dotted path."""
    waiting, n_seen = [("", top)], 0
    while waiting:
        path, record = waiting.pop()
        for name, value in record.attributes.items():
            n_seen += 1
            if len(path) + len(name) > _MAX_PATH:
                raise ModelFileError("its data.pkl holds modules within modules without end, or absurd names")
            if n_seen > _MAX_ATTRIBUTES:
                raise ModelFileError(f"its data.pkl has more than {_MAX_ATTRIBUTES:,} attributes; no model has")
            if isinstance(value, TensorRecord):
                yield path + name, value
            elif isinstance(value, Record):
                waiting.append((f"{path}{name}.", value))


class _Tensors:
    """Tensors of an archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._budget = Budget()
        self._read: dict[str, bytes] = {}

    def read(self, name: str, tensor: TensorRecord) -> Array:
        """The numbers of a tensor.

        Raises:
            ModelFileError: they are not in the archive, or the view reaches beyond them.
        """
        storage = tensor.storage
        dtype = np.dtype(storage.dtype)
        if 0 in tensor.shape:
            return np.zeros(0, dtype)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
        if last >= storage.size:
            raise ModelFileError(f"its tensor {name} reaches beyond the numbers that are stored for it")
        self._budget.spend(tensor.shape, dtype.itemsize, f"its tensor {name}")
        flat = np.frombuffer(self._bytes(storage, dtype.itemsize), dtype)
        strides = [s * dtype.itemsize for s in tensor.stride]
        return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()

    def _bytes(self, storage: Storage, itemsize: int) -> bytes:
        """The entry of a storage, of the size that the pickle says."""
        if storage.key not in self._read:
            entry = self._archive.getinfo(f"{self._folder}data/{storage.key}")
            if entry.file_size < storage.size * itemsize:
                raise ModelFileError(f"its entry {entry.filename} is shorter than the pickle says")
            self._budget.spend([entry.file_size], 1, f"its entry {entry.filename}")
            self._read[storage.key] = self._archive.read(entry)
        if len(self._read[storage.key]) < storage.size * itemsize:
            raise ModelFileError(f"its entry data/{storage.key} is shorter than the pickle says")
        return self._read[storage.key]
