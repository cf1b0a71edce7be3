"""Models of DeePMD-kit: read without DeePMD-kit, its frameworks or any code of the file, and written for it.

Every file becomes DeePMD-kit's own backend-neutral tree first (`read`), and the tree a potential (`load`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.exporter import save
from dpserver.models.deepmd.importer import model_of
from dpserver.models.deepmd.neutral import read_hdf5, read_yaml
from dpserver.models.deepmd.pytorch import read_checkpoint, read_frozen
from dpserver.models.deepmd.tensorflow import read_graph
from dpserver.models.deepmd.tree import Tree
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel

__all__ = ["load", "load_with_origin", "read", "recognises", "save"]

_READERS: Final[dict[str, tuple[str, Callable[[Path], Tree]]]] = {
    "dp": ("an HDF5 model", read_hdf5),
    "yaml": ("a YAML model", read_yaml),
    "pth": ("a frozen PyTorch model", read_frozen),
    "pt": ("a PyTorch checkpoint", read_checkpoint),
    "pb": ("a frozen TensorFlow model", read_graph),
}
_SUFFIXES: Final = {".dp": "dp", ".hlo": "dp", ".yaml": "yaml", ".yml": "yaml", ".pth": "pth", ".pb": "pb"}
_HDF5: Final = b"\x89HDF"
_ZIP: Final = b"PK"
_PEEK: Final = 64 << 20
_TOO_DEEP: Final = "its tree is nested too deeply for a model"


def load(path: str | Path, head: str | None = None) -> Potential:
    """Make a potential of a model file of DeePMD-kit's.

    Args:
        path: `.dp`, `.yaml`, `.pth`, `.pt` or `.pb`.
        head: which of its models, where a checkpoint holds several.

    Returns:
        The potential, on the CPU. Its `template` is not known; `min_distance` is the same for all pairs where the file
        has it, else inf.

    Raises:
        ModelFileError: no such model, damaged, hostile, or of a kind that is not supported.
        ConfigError: a package is missing that this kind of file needs.
    """
    model = load_with_origin(path, head)[0]
    if not isinstance(model, Potential):
        raise ModelFileError(f"{path} is a model of the kind {model.kind}, expected one of energies")
    return model


def load_with_origin(path: str | Path, head: str | None = None) -> tuple[Potential | TensorModel, str]:
    """Make a model of any kind of a file, see `load`, and tell what wrote it, as `DeePMD-kit 3.2.0 (PyTorch)`."""
    tree = read(path, head)
    try:
        return model_of(tree), _origin(tree)
    except ModelFileError as error:
        raise ModelFileError(f"{path} cannot be imported: {_printable(error)}") from None
    except RecursionError:
        raise ModelFileError(f"{path} cannot be imported: {_TOO_DEEP}") from None


def read(path: str | Path, head: str | None = None) -> Tree:
    """Read DeePMD-kit's tree of a model file: nested dicts and lists, with arrays below keys `@variables`.

    Args:
        path: of the file.
        head: which of its models, where a checkpoint holds several.

    Raises:
        ModelFileError: no model of DeePMD-kit's, damaged or hostile.
        ConfigError: a package is missing that this kind of file needs.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"model file {path} does not exist" if not path.exists() else f"{path} is not a file")
    kind = recognises(path)
    if kind is None:
        raise ModelFileError(f"{path} is no model of DeePMD-kit; expected a .dp, .yaml, .pth, .pt or .pb file of it")
    name, reader = _READERS[kind]
    if head is not None:
        if kind != "pt":
            raise ModelFileError(f"{path} is {name}, which holds a single model; leave out --head {head}")
        reader = partial(read_checkpoint, head=head)
    try:
        return reader(path)
    except ModelFileError as error:
        raise ModelFileError(f"{path} cannot be imported as {name} of DeePMD-kit's: {_printable(error)}") from None
    except RecursionError:
        raise ModelFileError(f"{path} cannot be imported as {name} of DeePMD-kit's: {_TOO_DEEP}") from None


def _printable(error: ModelFileError) -> str:
    """A message in one line; it may quote the file, which must not reach the terminal as it is."""
    return "".join(c if c.isprintable() else " " for c in str(error))


def _origin(tree: Tree) -> str:
    """Software, version and backend, as far as the tree tells."""
    parts = [tree.get(key) for key in ("software", "version", "backend")]
    software, version, backend = (p if isinstance(p, str) and p.isprintable() and len(p) < 40 else "" for p in parts)
    software = software if software and software != "deepmd-kit" else "DeePMD-kit"
    return " ".join(filter(None, [software, version, backend and f"({backend})"]))


def recognises(path: Path) -> str | None:
    """Tell the kind of a model file of DeePMD-kit's by its first bytes, or by its name where they tell nothing.

    Returns:
        `dp`, `yaml`, `pth`, `pt` or `pb`; None for any other file, those of dpserver among them.

    Raises:
        ModelFileError: the file cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {path}: {error.strerror}") from None
    if not start:
        return None
    if start == _HDF5:
        return "dp"
    if start.startswith(_ZIP):
        return _kind_of_archive(path)
    return _SUFFIXES.get(path.suffix.lower())


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return "pth"
            with archive.open(pickles[0]) as stream:
                return "pt" if b"model_params" in stream.read(_PEEK) else None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError, IndexError):
        return "pth" if path.suffix.lower() == ".pth" else None
