"""Potentials of many species, evaluated by kernels with tables for those that occur.

Models with embedded types may know the whole periodic table, and a simulation has a few elements of it: for these there
is a potential that knows nothing else, and answers the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch

from dpserver.frames import ForceResult, Frames
from dpserver.models.curves import MOST_SPECIES
from dpserver.models.se_atten import SeAtten

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

_MOST_SETS: Final = 4
"""Sets of species whose kernels are kept."""

Evaluate = Callable[[Frames], ForceResult]


class BySpecies:
    """One potential for each set of species that has come.

    Args:
        member: knows more species than the kernels have tables for.
        prepare: makes the fast form of a potential.
    """

    def __init__(self, member: Potential, prepare: Callable[[Potential], Evaluate]) -> None:
        self._member = member
        self._prepare = prepare
        self._ready: OrderedDict[tuple[int, ...], Evaluate] = OrderedDict()

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; see `Potential.evaluate`."""
        self._member.check(frames)
        present = tuple(np.unique(frames.types).tolist())
        if not 1 <= len(present) <= MOST_SPECIES:
            return self._member.reference(frames)
        kept = next((known for known in self._ready if set(present) <= set(known)), present)
        return self._of(kept)(replace(frames, types=np.searchsorted(kept, frames.types)))

    def _of(self, kept: tuple[int, ...]) -> Evaluate:
        """What evaluates frames of these species."""
        if kept not in self._ready:
            while len(self._ready) >= _MOST_SETS:
                self._ready.popitem(last=False)
            self._ready[kept] = self._prepare(restricted(self._member, kept))
        self._ready.move_to_end(kept)
        return self._ready[kept]


def is_restrictable(member: Potential) -> bool:
    """Whether a potential knows more species than there can be tables for, and can be told of fewer."""
    descriptor = member.descriptor
    if not isinstance(descriptor, SeAtten) or len(descriptor.attention) or member.table is not None or member.n_aparam:
        return False
    return descriptor.n_species > MOST_SPECIES


@torch.no_grad()
def restricted(member: Potential, kept: Sequence[int]) -> Potential:
    """A potential that answers as another does, and knows some of its species.

    Args:
        member: that is restrictable.
        kept: the species, ascending.
    """
    descriptor, config = member.descriptor, member.config
    if not isinstance(descriptor, SeAtten):
        raise TypeError(f"species of {type(descriptor).__name__} cannot be left out")

    def pairs(given: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple((kept.index(a), kept.index(b)) for a, b in given if a in kept and b in kept)

    section = descriptor.config.model_copy(
        update={
            "sel": (descriptor.n_slots,),
            "exclude_types": pairs(descriptor.config.exclude_types),
            "use_econf_tebd": False,
            "use_tebd_bias": False,
        }
    )
    energies = getattr(config.fitting_net, "given_energies", ())
    fitting = config.fitting_net.model_copy(update={"atom_ener": tuple(energies[c] for c in kept) if energies else ()})
    fewer = config.model_copy(
        update={
            "type_map": tuple(config.type_map[c] for c in kept),
            "descriptor": section,
            "fitting_net": fitting,
            "pair_exclude_types": pairs(config.pair_exclude_types),
            "atom_exclude_types": tuple(kept.index(c) for c in config.atom_exclude_types if c in kept),
        }
    )
    found = type(member)(fewer, precision=member.precision).to(member.device)
    rows, state = list(kept), dict(member.state_dict())
    state.pop("descriptor.types.bias", None)
    embedding = cast(SeAtten, found.descriptor).types
    unit = embedding() - embedding.weight  # what is added to the weights
    state["descriptor.types.weight"] = descriptor.types()[rows] - unit
    for name in ("descriptor.davg", "descriptor.dstd", "energy_bias"):
        state[name] = state[name][rows]
    found.load_state_dict(state)
    found.min_distance = member.min_distance[np.ix_(rows, rows)]
    found.crowd_distance = member.crowd_distance[np.ix_(rows, rows)]
    return found.requires_grad_(False).eval()
