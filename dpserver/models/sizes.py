"""How large a network may become that is built after a configuration from a file.

A configuration of a few bytes can ask for terabytes, or for more layers than anyone can wait for. What it asks for is
counted while the network is built, and refused as soon as that is more than the file has: numbers, and tensors, of
which every layer has some of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from dpserver.errors import ConfigError

_MAKERS: Final = frozenset({torch.empty, torch.ones, torch.rand, torch.randn, torch.zeros})
"""What the numbers of networks are made by; all take a shape."""


class AtMost(TorchFunctionMode):
    """A context in which so many tensors are made of so many numbers altogether, and no more.

    Args:
        n_tensors: the most that may be made.
        n_numbers: the most that all of them may have.
        excess: what the error says of more.
    """

    def __init__(self, n_tensors: int, n_numbers: int, excess: str) -> None:
        super().__init__()
        self._tensors_left = n_tensors
        self._numbers_left = n_numbers
        self._excess = excess

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's.

        Raises:
            ConfigError: it would make more than is left.
        """
        given = dict(kwargs or {})
        if func in _MAKERS:
            shape = given.get("size", args)
            self._tensors_left -= 1
            self._numbers_left -= math.prod(shape[0] if shape and isinstance(shape[0], Sequence) else shape)
            if min(self._tensors_left, self._numbers_left) < 0:
                raise ConfigError(self._excess)
        return func(*args, **given)


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor has as many numbers in the memory of the host as it says."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def n_numbers(tensors: Iterable[torch.Tensor]) -> int:
    """Count the numbers that tensors have, those of shared memory once.

    Args:
        tensors: of the host, each of them whole.
    """
    parts = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in tensors}
    return sum(parts.values())
