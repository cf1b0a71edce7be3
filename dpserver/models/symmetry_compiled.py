"""The fast form of Behler-Parrinello networks on CPU cores: kernels for the symmetry functions, torch for the nets.

It answers what `Potential.reference` does, to round-off, without the memory that automatic differentiation takes for
each triple of atoms. Members of a committee share the neighbour list and the symmetry functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.kernels import cpu, symmetry
from dpserver.kernels.layout import Batch
from dpserver.kernels.linear import at_most
from dpserver.kernels.symmetry import Functions
from dpserver.kernels.tables import TableError
from dpserver.kernels.threads import Threads
from dpserver.models.accelerated import SKIN, WithChargeNets, room_for_edges
from dpserver.models.behler_parrinello import BehlerParrinello
from dpserver.neighbors.cache import ListCache, Neighbourhood

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

_GRADIENT_BYTES: Final = 24  # of an edge
_ROWS: Final = 8
"""Atoms that a thread takes at a time."""


class SymmetryCompiled(WithChargeNets):
    """Potentials with the same symmetry functions, compiled together.

    Args:
        members: the potentials; their weights are not copied, and a change of them is a matter of `Compilation`.
            Charges that surroundings decide may come with one that is alone, see `charges` and `respond`.
        threads: that compute; None is one for each core available.

    Attributes:
        error: 0; there are no tables.
        is_accurate: True.
    """

    def __init__(self, members: Sequence[Potential], threads: int | None) -> None:
        super().__init__(members)
        self.error, self.is_accurate = TableError(0.0, 0.0, 0.0), True
        self._threads = Threads(threads)
        self._functions = functions_of(cast(BehlerParrinello, self._members[0].descriptor))
        self._lists = ListCache(
            self._members[0].descriptor.rcut,
            SKIN,
            self._n_species,
            room=lambda: room_for_edges(_GRADIENT_BYTES),
            workers=self._threads,
        )

    def __str__(self) -> str:
        n = self._threads.count
        return f"CPU kernels for symmetry functions on {n} {'thread' if n == 1 else 'threads'}, the nets by torch"

    def profile(self, frames: Frames) -> dict[str, float]:
        """Seconds of each stage, for one batch, in one thread."""
        with self._lock:
            self._compute(frames)
            seconds: dict[str, float] = {}
            self._compute(frames, seconds)
            return seconds

    def products(self, frames: Frames) -> float:
        """Multiplications and additions of the matrix products in one evaluation, there and back."""
        found = 0.0
        for member in self._members:
            for species, n_atoms in enumerate(self.centres_of(frames)):
                sizes = [p.numel() for p in member.fitting.net_of(species).parameters() if p.ndim == 2]
                found += 4.0 * float(n_atoms) * sum(sizes)
        return found

    def charges(self, frames: Frames) -> tuple[Floats, Ints]:
        """What the nets for charges say; see `WithChargeNets`."""
        with self._lock:
            batch, _ = self._batch(frames)
            features, status = self._describe(batch, frames, None)
            charges: Floats = np.zeros(frames.n_atoms)
            with at_most(self._threads.count):
                charges[batch.atoms] = _charges(self._members[0], features, frames.types[batch.atoms])
            return charges, status

    def respond(self, frames: Frames, by_charge: Floats) -> tuple[ForceResult, Ints]:
        """The answer with what follows from charges; see `WithChargeNets`."""
        with self._lock:
            (result,), status = self._compute(frames, by_charge=by_charge)
            return result, status

    def _compute(
        self, frames: Frames, seconds: dict[str, float] | None = None, by_charge: Floats | None = None
    ) -> tuple[list[ForceResult], Ints]:
        """Results, and the status of each atom; with `seconds` in one thread, to tell the stages apart."""
        batch, near = self._batch(frames)
        clock = _Clock(seconds)
        features, status = self._describe(batch, frames, seconds)
        weights = None if by_charge is None else by_charge[batch.atoms]
        clock.stop("symmetry functions")
        results = []
        for member in self._members:
            with at_most(self._threads.count if seconds is None else 1):
                energy, by_feature = _evaluate_nets(member, features, frames.types[batch.atoms], weights)
            clock.stop("fitting")
            gradient: Floats = np.empty((near.n_edges, 3))
            virial: Floats = np.zeros((frames.n_atoms, 6))
            self._run(batch, _gradients(self._functions, batch, by_feature, gradient, virial), seconds)
            clock.stop("back to edges")
            atom_energy: Floats = np.zeros(frames.n_atoms)
            atom_energy[batch.atoms] = energy
            results.append(self._collect(frames, batch, gradient, atom_energy, virial))
            clock.stop("sums")
        return results, status

    def _describe(self, batch: Batch, frames: Frames, seconds: dict[str, float] | None) -> tuple[Floats, Ints]:
        """D of the centres, (len(batch.atoms), n_features), and the status of each atom."""
        status: Ints = np.zeros(frames.n_atoms, dtype=np.int64)
        features: Floats = np.empty((len(batch.atoms), self._members[0].descriptor.n_features))
        functions = self._functions
        self._run(batch, lambda a, b: symmetry.find_features(functions, batch, a, b, features, status), seconds)
        return features, status

    def _batch(self, frames: Frames) -> tuple[Batch, Neighbourhood]:
        """What the kernels take."""
        near = self._lists.find(frames)
        atoms = np.argsort(frames.types, kind="stable")
        if frames.is_ghost is not None:
            atoms = atoms[~frames.is_ghost[atoms]]
        batch = Batch(
            near.positions(frames),
            near.translations(frames),
            near.starts,
            near.neighbour,
            near.shift,
            near.incoming,
            near.incoming_starts,
            atoms,
            np.zeros((0, 3), dtype=np.int64),
            np.zeros((0, frames.n_atoms)),
        )
        return batch, near

    def _run(self, batch: Batch, work: Callable[[int, int], None], seconds: dict[str, float] | None) -> None:
        """Let all threads take some atoms at a time until all are done; one thread alone, to take its time."""
        n_atoms = len(batch.atoms)
        if seconds is not None or n_atoms <= _ROWS:
            if n_atoms:
                work(0, n_atoms)
            return
        counter = count()

        def job(_: int) -> None:
            while (low := _ROWS * next(counter)) < n_atoms:
                work(low, min(low + _ROWS, n_atoms))

        self._threads.run(job)

    def _collect(
        self, frames: Frames, batch: Batch, gradient: Floats, atom_energy: Floats, atom_virial: Floats
    ) -> ForceResult:
        """Sum what belongs together."""
        sums = cpu.Sums.of(frames, 1)
        cpu.sum_forces(batch, gradient[None], 0, frames.n_atoms, sums.forces)
        cpu.sum_frames(atom_energy[None], atom_virial[None], sums)
        return sums.results(atom_energy[None])[0]


class _Clock:
    """Adds up the time since it was last asked, by name.

    Args:
        seconds: where to; None keeps no time.
    """

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def stop(self, name: str) -> None:
        """The time since the last call was spent on this."""
        now = time.perf_counter()
        if self._seconds is not None:
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now


def functions_of(descriptor: BehlerParrinello) -> Functions:
    """The functions of a descriptor as the kernels take them."""
    config, n_species = descriptor.config, descriptor.n_species
    first: Ints = np.zeros((n_species, n_species), dtype=np.int64)
    for k, (a, b) in enumerate(descriptor.pairs):
        first[a, b] = first[b, a] = n_species * len(config.radial) + k * len(config.angular)
    return Functions(
        float(config.rcut),
        n_species,
        np.array(config.radial, dtype=np.float64),
        np.array(descriptor.reaches, dtype=np.float64),
        np.array(descriptor.angles, dtype=np.int64).reshape(-1, 2),
        np.array(descriptor.places, dtype=np.int64).reshape(-1, 2),
        first,
    )


def _gradients(
    functions: Functions, batch: Batch, by_feature: Floats, gradient: Floats, virial: Floats
) -> Callable[[int, int], None]:
    """The way back for one member."""
    return lambda a, b: symmetry.find_gradients(functions, batch, a, b, by_feature, gradient, virial)


def _evaluate_nets(
    member: Potential, features: Floats, types: Ints, by_charge: Floats | None = None
) -> tuple[Floats, Floats]:
    """Energies of atoms sorted by species, and derivatives by D of these and of Σ_i φ_i q_i.

    Args:
        member: the potential.
        features: of the atoms, (n, n_features).
        types: their species, in order.
        by_charge: φ, (n,), eV/e, where surroundings decide charges q; None where they do not.

    Returns:
        (n,), eV, and (n, n_features).
    """
    energy, by_feature = np.empty(len(types)), np.empty_like(features)
    bounds = np.searchsorted(types, np.arange(len(member.species) + 1))
    for c, (low, high) in enumerate(pairwise(bounds)):
        if low == high:
            continue
        with torch.enable_grad():
            raw = torch.from_numpy(features[low:high]).requires_grad_()
            d = _standardised(member, raw, c)
            output = member.fitting.net_of(c)(d).squeeze(-1).double()
            weighed = output.sum() * (c not in member.absent)
            if by_charge is not None:
                weighed = weighed + (torch.from_numpy(by_charge[low:high]) * _charges_of(member, d, c)).sum()
            (gradient,) = torch.autograd.grad(weighed, raw, materialize_grads=True)
        by_feature[low:high] = gradient.numpy()
        vacuum = member.fitting.vacuum(c).double() if c in member.vacuum_removed else torch.zeros(1, 1)
        energy[low:high] = (output.detach() - vacuum.detach()[0, 0] + member.energy_bias[c]).numpy()
        if c in member.absent:
            energy[low:high] = 0.0
    return energy, by_feature


@torch.no_grad()
def _charges(member: Potential, features: Floats, types: Ints) -> Floats:
    """What the nets for charges say of atoms sorted by species, (n,), e."""
    charges = np.empty(len(types))
    bounds = np.searchsorted(types, np.arange(len(member.species) + 1))
    for c, (low, high) in enumerate(pairwise(bounds)):
        d = _standardised(member, torch.from_numpy(features[low:high]), c)
        charges[low:high] = _charges_of(member, d, c).numpy()
    return charges


def _standardised(member: Potential, raw: Tensor, species: int) -> Tensor:
    """What the nets take of atoms of one species."""
    descriptor = cast(BehlerParrinello, member.descriptor)
    return ((raw - descriptor.davg[species]) / descriptor.dstd[species]).to(member.network_dtype)


def _charges_of(member: Potential, d: Tensor, species: int) -> Tensor:
    """What the net for charges says of atoms of one species, (n,), float64, e."""
    electrostatics = member.electrostatics
    if electrostatics is None or electrostatics.nets is None or electrostatics.config.environment is None:
        raise TypeError("the charges of this potential do not depend on the surroundings")
    output: Tensor = electrostatics.nets.net_of(species)(d)[:, 0].double()
    return electrostatics.config.environment.scale * output
