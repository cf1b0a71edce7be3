"""The part of short range of a potential whose charges depend on the surroundings, in two passes.

What surroundings change of a charge, q_i = s h(D_i), has to be known before the charges interact, and what follows from
that, φ_i = dE_far/dq_i, before there are forces:

    first     q_i
    second    energies N(D_i), and -d/dx and -d/dε of Σ_i [N(D_i) + φ_i q_i] with the φ_i held
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models.accelerated import WithChargeNets, chosen, put_in_place
from dpserver.models.potential import Potential, Prediction


class Near(Protocol):
    """What goes through both passes; in words it is what evaluates."""

    def charges(self, frames: Frames) -> Floats:
        """What surroundings change of charges, (n_atoms,), e; zeros for ghosts.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """

    def respond(self, frames: Frames, by_charge: Floats) -> ForceResult:
        """Energies of the part of short range, and forces and virials of it and of the charges that it changes.

        Args:
            frames: structures.
            by_charge: dE_far/dq of what `charges` says of each atom, (n_atoms,), eV/e.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to."""


class ByTorch:
    """By torch and its automatic differentiation; where there are no kernels, and what those are compared with.

    Args:
        member: the potential.
    """

    def __init__(self, member: Potential) -> None:
        if member.electrostatics is None:
            raise TypeError("the potential has no charges")
        self._electrostatics = member.electrostatics
        self._bare = member.without_charges()

    def __str__(self) -> str:
        return "torch: there are no kernels for this model"

    @torch.no_grad()
    def charges(self, frames: Frames) -> Floats:
        """What surroundings change of charges; see `Near`."""
        graph = self._bare.graph(frames)
        found = self._electrostatics.of_surroundings(graph, self._bare.describe(graph, graph.vectors()))
        return np.asarray(found.cpu().numpy())

    def respond(self, frames: Frames, by_charge: Floats) -> ForceResult:
        """Answer with what follows from charges; see `Near`."""
        graph = self._bare.graph(frames)
        with torch.enable_grad():
            r_ij = graph.vectors().requires_grad_()
            described = self._bare.describe(graph, r_ij)
            energy = self._bare.energies_of(graph, described, r_ij)
            charges = self._electrostatics.of_surroundings(graph, described)
            weighed = energy.sum() + (torch.as_tensor(by_charge, device=charges.device) * charges).sum()
            (edge_grad,) = torch.autograd.grad(weighed, [r_ij], materialize_grads=True)
        return Prediction.of_derivatives(graph, r_ij.detach(), energy.detach(), edge_grad).to_result(frames)

    def warm_up(self) -> None:
        """There is nothing to be made."""


class ByKernels:
    """By kernels, but for structures with distances that no table reaches, and batches without any structure.

    Args:
        compiled: the potential and its nets for charges.
        exact: answers for those.
    """

    def __init__(self, compiled: WithChargeNets, exact: ByTorch) -> None:
        self._compiled, self._exact = compiled, exact

    def __str__(self) -> str:
        return f"{self._compiled}; charges by surroundings in a pass of their own"

    def charges(self, frames: Frames) -> Floats:
        """What surroundings change of charges; see `Near`."""
        if not frames.n_frames:
            return self._exact.charges(frames)
        found, status = self._compiled.charges(frames)
        numbers = self._compiled.left_out(frames, status)
        if len(numbers):
            some, atoms = chosen(frames, numbers)
            found[atoms] = self._exact.charges(some)
        return found

    def respond(self, frames: Frames, by_charge: Floats) -> ForceResult:
        """Answer with what follows from charges; see `Near`."""
        if not frames.n_frames:
            return self._exact.respond(frames, by_charge)
        found, status = self._compiled.respond(frames, by_charge)
        numbers = self._compiled.left_out(frames, status)
        if len(numbers):
            some, atoms = chosen(frames, numbers)
            put_in_place(found, self._exact.respond(some, by_charge[atoms]), numbers, atoms)
        return found

    def warm_up(self) -> None:
        """Take both passes with an atom alone, whether or not it has an answer."""
        atom = Frames.single([[0.0, 0.0, 0.0]], [0])
        self._compiled.charges(atom)
        self._compiled.respond(atom, np.zeros(1))
