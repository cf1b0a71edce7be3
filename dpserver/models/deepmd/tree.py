"""DeePMD-kit's backend-neutral tree: nested dicts and lists of plain values, with arrays below keys `@variables`.

The readers make one of every kind of file; nothing in it can be trusted, so every value is taken out of it here, and
one of the wrong kind is named by its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import ModelFileError
from dpserver.frames import Floats

Tree = dict[str, Any]
Array = NDArray[Any]

MAX_BYTES: Final = 2 << 30
"""More memory than any model in use takes; a file that asks for more is refused before it is given any."""

T = TypeVar("T")


class Budget:
    """What a file may still take of `MAX_BYTES`.

    Args:
        n_bytes: how much it may take in all.
    """

    def __init__(self, n_bytes: int = MAX_BYTES) -> None:
        self._left = n_bytes

    def spend(self, shape: Sequence[int], itemsize: int, name: str) -> None:
        """Take what an array needs.

        Raises:
            ModelFileError: its shape is absurd, or too much has been taken.
        """
        if min(shape, default=0) < 0:
            raise ModelFileError(f"{name} has the shape {list(shape)}: a size below 0")
        self._left -= math.prod(int(n) for n in shape) * itemsize
        if self._left < 0:
            raise ModelFileError(f"{name} has the shape {list(shape)}: with it the model would take more than 2 GiB")


def get(node: object, key: str, kind: type[T], where: str) -> T:
    """Take an entry of a section.

    Args:
        node: the section.
        key: of the entry.
        kind: the type it must have; a bool is no int here, and an int may stand for a float.
        where: dotted place of the section.

    Raises:
        ModelFileError: there is no such entry, or it is of another type.
    """
    if not isinstance(node, dict):
        raise ModelFileError(f"its {where} is of type {type(node).__name__}, expected a section")
    if key not in node:
        raise ModelFileError(f"its {where} lacks the entry {key!r}")
    value = node[key]
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = "list" if kind is list else kind.__name__
        raise ModelFileError(f"its {where}.{key} is of type {type(value).__name__}, expected {name}")
    return value


def get_or(node: Tree, key: str, default: T, where: str) -> T:
    """Take an entry of the type of `default`, which stands for one that is missing or null."""
    return default if node.get(key) is None else get(node, key, type(default), where)


def get_section(node: Tree, key: str, where: str) -> Tree:
    """Take a section that may be missing or null, and then is empty."""
    return {} if node.get(key) is None else get(node, key, dict, where)


def array(node: object, key: str, shape: Sequence[int], where: str) -> Floats:
    """Take an array of real numbers.

    Args:
        node: the section of `@variables` it is in.
        key: of the entry.
        shape: what it must have once axes of length 1 are left out on both sides.
        where: dotted place of the section.

    Returns:
        A float64 array of its own, of exactly this shape.

    Raises:
        ModelFileError: it is missing, of another shape, not of real numbers, or not finite.
    """
    value = get(node, key, np.ndarray, where)
    if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:
        raise ModelFileError(f"its {where}.{key} has the shape {list(value.shape)}, expected {list(shape)}")
    if value.dtype.kind not in "fiu":
        raise ModelFileError(f"its {where}.{key} holds no real numbers, but {value.dtype}")
    if not np.isfinite(value).all():
        raise ModelFileError(f"its {where}.{key} holds numbers that are not finite: its training has diverged")
    return np.array(value, dtype=np.float64).reshape(shape)


def is_unset(value: object) -> bool:
    """Whether an option is off: null, false, zero, or empty."""
    if isinstance(value, np.ndarray):
        return value.size == 0
    if isinstance(value, list | tuple):
        return all(item is None for item in value)
    return value is None or value is False or value in (0, 0.0, "", {}, "None")


def shown(value: object) -> str:
    """A value in a message, not at any length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def both_ways(pairs: Sequence[object]) -> set[tuple[int, int]]:
    """Excluded pairs of types, each in both orders.

    Raises:
        ModelFileError: one is no pair of types.
    """
    found = set()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(c) is int for c in pair):
            raise ModelFileError(f"its model.descriptor.exclude_types holds {shown(pair)}, expected two types")
        found |= {(pair[0], pair[1]), (pair[1], pair[0])}
    return found
