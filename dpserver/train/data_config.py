"""The sections `training_data` and `validation_data` of the training input: systems, and how batches are drawn."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator

from dpserver.models.section import NonNegativeFloat, Positive, Section, Table


def _systems(value: Any) -> Any:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(p, str) and p for p in paths):
        raise ValueError("must be a path or a list of paths")
    return tuple(paths)


def _patterns(value: Any) -> Any:
    patterns = [value] if isinstance(value, str) else value
    if patterns is not None and not (
        isinstance(patterns, list | tuple) and patterns and all(isinstance(p, str) and p for p in patterns)
    ):
        raise ValueError("must be a list of patterns such as run_*")
    if patterns is not None and any(p.startswith("/") for p in patterns):
        raise ValueError("must be a list of patterns relative to the directories in systems")
    return None if patterns is None else tuple(patterns)


_BATCH_SIZES: Final = 'must be an integer > 0, a list of such, "auto", or "auto:N", "max:N", "filter:N" or "mixed:N"'


def _batch_size(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"auto|(auto|max|filter|mixed):0*[1-9]\d*", value):
            raise ValueError(_BATCH_SIZES)
        return value
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError(_BATCH_SIZES)
    return tuple(value) if isinstance(value, list | tuple) else value


def _auto_prob(value: Any) -> Any:
    try:
        parse_auto_prob(value)
    except (TypeError, ValueError, AttributeError):
        raise ValueError(
            'must be "prob_uniform", "prob_sys_size" or "prob_sys_size;first:end:weight;…" with weights > 0'
        ) from None
    return value


def parse_auto_prob(text: str) -> list[tuple[int, int, float]]:
    """Read the blocks of `auto_prob`.

    Args:
        text: "prob_uniform", "prob_sys_size", or "prob_sys_size;first:end:weight;…".

    Returns:
        First system, end (excluded) and weight of each block; none without blocks.

    Raises:
        ValueError: where it is none of these.
    """
    style, *rest = text.split(";")
    if style != "prob_sys_size" and (style != "prob_uniform" or rest):
        raise ValueError(text)
    blocks = []
    for block in rest:
        first, end, weight = block.split(":")
        blocks.append((int(first), int(end), float(weight)))
        if not 0 <= int(first) < int(end) or not 0 < float(weight) < math.inf:
            raise ValueError(text)
    return blocks


class DataConfig(Section):
    """Systems to train on, and how batches are drawn from them.

    Attributes:
        systems: DeePMD npy directories, directories of such, HDF5 files, extended XYZ files, or what dpdata reads;
            see `dpserver.train.formats.sources`.
        rglob_patterns: only directories in `systems` that match one of these, such as `run_*` or `a/**/b`.
        batch_size: frames per batch, for all or for each system; "auto[:N]" takes at least N = 32 atoms, "max:N" at
            most N where a frame has no more, "filter:N" the same and leaves out larger frames, "mixed:N" takes N
            frames of all systems together.
        auto_prob: how systems are drawn, see `parse_auto_prob`.
        sys_probs: relative probability of each system, instead of `auto_prob`.
        min_pair_dist: frames with atoms closer than this are left out, Å.
    """

    aliases: ClassVar[Table] = {"auto_prob_style": "auto_prob", "sys_weights": "sys_probs"}
    fixed: ClassVar[Table] = {"set_prefix": "set"}

    systems: Annotated[tuple[str, ...], BeforeValidator(_systems)]
    batch_size: Annotated[int | tuple[int, ...] | str, BeforeValidator(_batch_size)] = "auto"
    auto_prob: Annotated[str, BeforeValidator(_auto_prob)] = "prob_sys_size"
    sys_probs: tuple[NonNegativeFloat, ...] | None = None
    min_pair_dist: NonNegativeFloat = 0.0
    rglob_patterns: Annotated[tuple[str, ...] | None, BeforeValidator(_patterns)] = None

    @property
    def batch_rule(self) -> tuple[str, int] | None:
        """Word and number of a `batch_size` that is a rule; None where it is a number, or one for each system."""
        if not isinstance(self.batch_size, str):
            return None
        word, _, number = self.batch_size.partition(":")
        return word, int(number or 32)


class ValidationDataConfig(DataConfig):
    """Systems to validate on.

    Attributes:
        numb_btch: batches per validation.
    """

    aliases: ClassVar[Table] = {**DataConfig.aliases, "numb_batch": "numb_btch"}

    numb_btch: Positive = 1
