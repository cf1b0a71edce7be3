"""Parameters of frames and atoms that a model may take beside the structure: which, and whether a batch has them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

from dpserver.errors import StructureError
from dpserver.frames import Frames


class Takes(NamedTuple):
    """The parameters a model takes.

    Attributes:
        n_fparam: of each frame.
        n_aparam: of each atom.
        has_default_fparam: whether frames may come without any.
        default_fparam: what these then have, where it is known.
    """

    n_fparam: int = 0
    n_aparam: int = 0
    has_default_fparam: bool = False
    default_fparam: tuple[float, ...] | None = None


@runtime_checkable
class TakesParameters(Protocol):
    """A model that tells which parameters it takes; one that does not takes none."""

    @property
    def takes(self) -> Takes:
        """The parameters the model takes."""


def taken_by(model: object) -> Takes:
    """The parameters a model takes."""
    return model.takes if isinstance(model, TakesParameters) else Takes()


def check_parameters(frames: Frames, n_fparam: int, n_aparam: int, *, has_default_fparam: bool = False) -> None:
    """Refuse frames without the parameters a model takes, and those with some that it does not take.

    Raises:
        StructureError: the number of parameters is another than expected.
    """
    for name, owner, given, expected, rows, has_default in (
        ("fparam", "frame", frames.fparam, n_fparam, frames.n_frames, has_default_fparam),
        ("aparam", "atom", frames.aparam, n_aparam, frames.n_atoms, False),
    ):
        if given is None and (has_default or not expected):
            continue
        if given is None:
            raise StructureError(f"the model takes {expected} parameters {name} of each {owner}, and none are given")
        if not expected:
            raise StructureError(
                f"the model takes no parameters {name}, but {given.shape[-1]} are given; leave them out"
            )
        if given.shape != (rows, expected):
            raise StructureError(
                f"the model takes {expected} parameters {name} of each {owner}: expected the shape {(rows, expected)}, "
                f"got {given.shape}"
            )


def suited(frames: Frames, model: object) -> Frames:
    """Frames without the parameters that a model has no use for.

    Args:
        frames: with all the parameters there are.
        model: that is to evaluate them.
    """
    takes = taken_by(model)
    return replace(
        frames,
        fparam=frames.fparam if takes.n_fparam else None,
        aparam=frames.aparam if takes.n_aparam else None,
    )
