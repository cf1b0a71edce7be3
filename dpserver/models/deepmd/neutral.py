"""The files that hold DeePMD-kit's tree as it is: `.dp` (HDF5) and `.yaml`.

In a `.dp` the attribute `json` of the root is the tree, where below a key `@variables` a string names a dataset. In a
`.yaml` an array is a section with `@is_variable`, its dtype and nested lists of its numbers.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models.deepmd.tree import Array, Budget, Tree

_FILTERS: Final = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Those that h5py brings; HDF5 would look for others among the plug-ins of this machine."""
_DTYPES: Final = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"})
_MAX_NODES: Final = 50_000_000
_MAX_DEPTH: Final = 64


def library(name: str, package: str, what: str) -> Any:
    """Import a library that is not always installed.

    Raises:
        ConfigError: it is not here.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: pip install 'dpserver[deepmd]'"
        ) from None


def read_hdf5(path: Path) -> Tree:
    """Read the tree of a `.dp` file.

    Raises:
        ModelFileError: damaged, without a tree, or with datasets that lie elsewhere or need plug-ins.
        ConfigError: h5py is not installed.
    """
    h5py = library("h5py", "h5py", "a .dp file")
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("json")
            if not isinstance(text, str | bytes):
                raise ModelFileError("it is an HDF5 file without the attribute 'json' that DeePMD-kit's .dp files have")
            tree: Tree = _resolved(_parsed(text), _Datasets(h5py, file))
            return tree
    except RecursionError:
        raise ModelFileError("its tree is nested too deeply for a model") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ModelFileError(f"it is cut short or damaged: {error}; copy it again") from None


def _parsed(text: str | bytes) -> Tree:
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"its attribute 'json' is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ModelFileError(f"its attribute 'json' holds a {type(tree).__name__}, expected a section")
    return tree


def _resolved(node: Any, datasets: _Datasets, is_variable: bool = False) -> Any:
    """Put arrays in the place of their names."""
    if isinstance(node, dict):
        return {k: _resolved(v, datasets, is_variable or k == "@variables") for k, v in node.items()}
    if isinstance(node, list):
        return [_resolved(v, datasets, is_variable) for v in node]
    return datasets.read(node) if is_variable and isinstance(node, str) else node


class _Datasets:
    """Arrays of an HDF5 file, by name, each read once."""

    def __init__(self, h5py: Any, file: Any) -> None:
        self._h5py = h5py
        self._file = file
        self._budget = Budget()
        self._read: dict[str, Array] = {}

    def read(self, name: str) -> Array:
        """The array `name`; refused if the file only points to it, or asks for more than `MAX_BYTES`."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> Array:
        link = self._file.get(name, getlink=True)
        if not isinstance(link, self._h5py.HardLink):
            raise ModelFileError(f"its dataset {name} is missing, or lies in another file, which is not opened")
        dataset = self._file[name]
        if not isinstance(dataset, self._h5py.Dataset):
            raise ModelFileError(f"its {name} is no dataset")
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
        if dataset.is_virtual or dataset.external or any(code not in _FILTERS for code in filters):
            raise ModelFileError(f"its dataset {name} lies in another file or needs a plug-in of HDF5; it is not read")
        if dataset.dtype.kind not in "fiub" or dataset.shape is None:
            raise ModelFileError(f"its dataset {name} holds no numbers, but {dataset.dtype}")
        self._budget.spend(dataset.shape, dataset.dtype.itemsize, f"its dataset {name}")
        return np.asarray(dataset[()])


def write_hdf5(stream: BinaryIO, tree: Tree) -> None:
    """Write a tree as the content of a `.dp` file.

    Raises:
        ConfigError: h5py is not installed.
    """
    h5py = library("h5py", "h5py", "a .dp file")
    with h5py.File(stream, "w") as file:

        def stored(node: Any) -> Any:
            if isinstance(node, dict):
                return {key: stored(value) for key, value in node.items()}
            if isinstance(node, list):
                return [stored(value) for value in node]
            if not isinstance(node, np.ndarray):
                return node
            return file.create_dataset(f"variable_{len(file):04d}", data=node).name

        file.attrs["json"] = json.dumps(stored(tree), separators=(",", ":"), allow_nan=False)


def read_yaml(path: Path) -> Tree:
    """Read the tree of a `.yaml` file.

    Raises:
        ModelFileError: damaged, without a tree, or made to grow beyond all measure.
        ConfigError: PyYAML is not installed.
    """
    yaml = library("yaml", "pyyaml", "a .yaml file")

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """A safe loader that knows no merge keys: nested ones grow without bounds."""

        def flatten_mapping(self, node: Any) -> None:
            """Leave the keys as they are."""

    try:
        text = path.read_bytes()
        _check_depth(yaml, text, Loader)
        tree = yaml.load(text, Loader=Loader)
        _count(tree, {})
        tree = _with_arrays(tree)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, OSError) as error:
        raise ModelFileError(f"it is no YAML that can be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise ModelFileError(f"it holds a {type(tree).__name__}, expected the sections of a model")
    return tree


def _check_depth(yaml: Any, text: bytes, loader: Any) -> None:
    """Refuse what is nested without end; the constructor of a tree would break down on it."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ModelFileError("its tree is nested too deeply for a model")


def _count(node: object, known: dict[int, int]) -> int:
    """Number of values below a node, those that stand in several places counted in each."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # what a node that contains itself finds
        known[id(node)] = 1 + sum(_count(v, known) for v in (node.values() if isinstance(node, dict) else node))
    if known[id(node)] > _MAX_NODES:
        raise ModelFileError(f"its anchors and aliases stand for more than {_MAX_NODES:,} values; no model is as large")
    return known[id(node)]


def _with_arrays(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_arrays(value) for value in node]
    if not isinstance(node, dict):
        return node
    return _array(node) if node.get("@is_variable") else {key: _with_arrays(value) for key, value in node.items()}


def _array(node: Mapping[str, Any]) -> Array:
    if node.get("dtype") not in _DTYPES or "value" not in node:
        known = ", ".join(sorted(_DTYPES))
        raise ModelFileError(f"it holds an array of dtype {node.get('dtype')!r}; known are {known}")
    return np.asarray(node["value"], dtype=str(node["dtype"]))
