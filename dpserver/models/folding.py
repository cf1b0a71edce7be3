"""Potentials that take parameters of frames, evaluated by kernels that know none.

What the parameters add to the first layer of a fitting net is the same for all atoms of a frame: with them in the bias,

    (D, f̃) W + b = D W_D + (f̃ W_f + b),

there is a potential without parameters for each set of them, and simulations have few sets. Its tables take longer than
many an evaluation by the reference: a set that comes once is not worth them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.models.networks import Layer

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

_MOST_SETS: Final = 8
"""Sets of parameters in one batch, and those whose kernels are kept; beyond them the reference is as quick."""
_LARGE: Final = 2000
"""Atoms in a batch from which on tables are made at once: the reference takes longer, and much memory."""

Evaluate = Callable[[Frames], ForceResult]


class ByParameters:
    """One potential for each set of parameters that has come more than once; until then the reference answers.

    Args:
        member: takes parameters of frames, and none of atoms.
        prepare: makes the fast form of a potential without parameters.
    """

    def __init__(self, member: Potential, prepare: Callable[[Potential], Evaluate]) -> None:
        self._member = member
        self._prepare = prepare
        self._ready: OrderedDict[bytes, Evaluate] = OrderedDict()
        self._seen_once: OrderedDict[bytes, None] = OrderedDict()

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch; see `Potential.evaluate`."""
        member = self._member
        member.check(frames)
        given = frames.fparam
        if given is None:
            given = np.tile(np.array(member.takes.default_fparam), (frames.n_frames, 1))
        sets, which = np.unique(given, axis=0, return_inverse=True)
        if not 1 <= len(sets) <= _MOST_SETS:
            return member.reference(frames)
        chosen = [self._of(fparam, frames.n_atoms) for fparam in sets]
        if all(evaluate is None for evaluate in chosen):
            return member.reference(frames)
        bare, which = replace(frames, fparam=None), which.reshape(-1)
        if chosen[0] is not None and len(sets) == 1:
            return chosen[0](bare)
        shares = [(np.flatnonzero(which == k), bare, do) for k, do in enumerate(chosen) if do is not None]
        if None in chosen:
            new = [k for k, evaluate in enumerate(chosen) if evaluate is None]
            shares.append((np.flatnonzero(np.isin(which, new)), frames, member.reference))
        parts = [evaluate(Frames.concatenate(given[int(f)] for f in mine)) for mine, given, evaluate in shares]
        return _put_together(frames, parts, [mine for mine, _, _ in shares])

    def _of(self, fparam: Floats, n_atoms: int) -> Evaluate | None:
        """What evaluates frames with these parameters, in a batch of so many atoms; None is the reference."""
        key = fparam.tobytes()
        if key not in self._ready:
            if key not in self._seen_once and n_atoms < _LARGE:
                _make_room(self._seen_once)
                self._seen_once[key] = None
                return None
            self._seen_once.pop(key, None)
            _make_room(self._ready)
            self._ready[key] = self._prepare(folded(self._member, fparam))
        self._ready.move_to_end(key)
        return self._ready[key]


def is_foldable(member: Potential) -> bool:
    """Whether a potential takes parameters of frames that the bias of its first layers can stand for."""
    if not member.takes.n_fparam or member.takes.n_aparam:
        return False
    return not any(layer.copies for layer in _first_layers(member))


@torch.no_grad()
def folded(member: Potential, fparam: Floats) -> Potential:
    """A potential without parameters that answers as another does to frames with some.

    Args:
        member: that is foldable.
        fparam: the parameters, (n_fparam,).
    """
    fitting = member.config.fitting_net.model_copy(update={"numb_fparam": 0, "default_fparam": None})
    config = member.config.model_copy(update={"fitting_net": fitting})
    found = type(member)(config, precision=member.precision).to(member.device)
    for layer in _first_layers(found):  # of widths that happen to fit now
        layer.copies, layer.timestep = 0, None
    given = member.fitting
    shift = (torch.from_numpy(fparam).to(member.device) - given.fparam_avg) * given.fparam_inv_std
    state = {name: tensor for name, tensor in member.state_dict().items() if not name.startswith("fitting.fparam_")}
    for k, layer in enumerate(_first_layers(member)):
        weight = layer.weight.double()
        n_features = len(weight) - len(shift)
        state[f"fitting.{k}.0.weight"] = layer.weight[:n_features]
        state[f"fitting.{k}.0.bias"] = layer.bias.double() + shift @ weight[n_features:]
    found.load_state_dict(state)
    found.template, found.min_distance = member.template, member.min_distance
    found.crowd_distance = member.crowd_distance
    return found.requires_grad_(False).eval()


def _make_room(kept: OrderedDict[bytes, Any]) -> None:
    """Drop what was used longest ago, so that one more is not too much."""
    while len(kept) >= _MOST_SETS:
        kept.popitem(last=False)


def _first_layers(member: Potential) -> list[Layer]:
    return [cast(Layer, cast(torch.nn.Sequential, net)[0]) for net in member.fitting]


def _put_together(frames: Frames, parts: list[ForceResult], idx: list[Ints]) -> ForceResult:
    """The results of several choices of frames as that of all of them."""
    whole = ForceResult(
        np.zeros(frames.n_frames),
        np.zeros((frames.n_atoms, 3)),
        np.zeros((frames.n_frames, 3, 3)),
        np.zeros(frames.n_atoms),
        frames.frame_idx.copy(),
    )
    for part, mine in zip(parts, idx, strict=True):
        atoms = np.isin(frames.frame_idx, mine)
        whole.energy[mine], whole.virial[mine] = part.energy, part.virial
        whole.forces[atoms], whole.atom_energy[atoms] = part.forces, part.atom_energy
    return whole
