"""How functions are compiled for the CPU: once, on the first call, kept on disk for the next process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba.core import caching
from numba.core.registry import cpu_target

F = TypeVar("F", bound=Callable[..., object])

_SOURCES: Final = ("jit.py", "kernels/*.py", "neighbors/*.py", "parallel/gathering.py")


def jit(function: F) -> F:
    """Compile a function on its first call, to run without Python's lock.

    The machine code is kept beside the source file, or in the user's cache directory; where neither can be written,
    each process makes it anew. Operations stay in the order they are written in; a product and a sum may become one.
    """
    return _compiled(function, {"contract"})


def jit_reordered(function: F) -> F:
    """Compile like `jit` a function whose sums may be taken in another order, so that they can use vectors."""
    return _compiled(function, {"contract", "reassoc", "nsz"})


@functools.cache
def compiles_with(feature: str) -> bool:
    """Whether numba compiles for a CPU that has an instruction set, as LLVM calls it.

    That may be fewer than this machine has: NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX decide. What a
    CPU's name alone stands for is not counted.
    """
    return f"+{feature}" in _target()[2].split(",")


def compiles_for_x86() -> bool:
    """Whether numba compiles for a CPU of that family, of 32 or 64 bits."""
    return _target()[0].startswith(("x86", "i386", "i486", "i586", "i686"))


def _target() -> tuple[str, str, str]:
    """What numba compiles for: LLVM's triple, the name of the CPU and its features."""
    codegen: Any = cpu_target.target_context.codegen()
    triple, name, features = codegen.magic_tuple()
    return triple, name, features


def _compiled(function: F, fastmath: set[str]) -> F:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    dispatcher: Any = numba.njit(**options)(function)
    with contextlib.suppress(RuntimeError):  # numba found no place that can be written
        make_cache: Any = _Cache
        dispatcher._cache = make_cache(function)
    return cast(F, dispatcher)


class _Cache(caching.FunctionCache):
    """Machine code on disk that is out of date as soon as any of our kernels' sources changes.

    numba itself looks only at the file that the function is in, and not at those of the functions it calls.
    """

    def _index_key(self, *arguments: Any) -> tuple[Any, ...]:
        key: Any = super()._index_key
        return (*key(*arguments), _digest())

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep machine code; where the disk is full, the next process makes it anew."""
        save: Any = super().save_overload
        with contextlib.suppress(OSError):
            save(signature, data)


@functools.cache
def _digest() -> str:
    """A number of all sources."""
    found = hashlib.sha256()
    root = Path(__file__).parent
    for pattern in _SOURCES:
        for path in sorted(root.glob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()
