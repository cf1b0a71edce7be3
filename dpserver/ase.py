"""A Deep Potential inside ASE's own process.

>>> atoms.calc = DPCalculator("w.pt")
>>> atoms.get_potential_energy()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import ArrayLike

from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import CommitteeResult, Frames, Ints
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.parameters import suited
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.parallel.pieces import Pieces


class DPCalculator(Calculator):
    """ASE calculator that evaluates a Deep Potential in process.

    Units are ASE's: eV, eV/Å and eV/Å³. The stress is -Ξ/V in Voigt order xx yy zz yz xz xy, positive when the cell is
    stretched, and is given where all three directions are periodic.

    Args:
        model: a model file, or a potential or a committee that is loaded already.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; for a model file.
        precision: `double`, `mixed` or `single`; for a model file, by default the one it was trained in.
        fparam: parameters of the structure, for a model that takes such; `atoms.info["fparam"]` goes before it.
        aparam: parameters of the atoms, for a model that takes such, (n_atoms, n_aparam); `atoms.arrays["aparam"]` and
            `atoms.info["aparam"]` go before it.
        dipole: a model of dipoles, or its file; with it there is the property `dipole`, in e Å.
        table_error: of forces, by tables of the embedding nets, relative to their typical size; for a model file.

    Attributes:
        potential: what evaluates.
        dipole: evaluates the dipole, or None.
        committee: what the members said of the last structure, where the model is a committee, else None; `results`
            holds their mean.

    Raises:
        ModelFileError: the file cannot be used.
        DeviceError: the device does not exist.
        ConfigError: the precision is unknown, a number makes no sense, or the model of dipoles is none.
    """

    implemented_properties: list[str] = [  # noqa: RUF012
        "energy", "free_energy", "energies", "forces", "stress", "dipole",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | Potential | Committee,
        device: str = "auto",
        precision: str | None = None,
        *,
        fparam: ArrayLike | None = None,
        aparam: ArrayLike | None = None,
        dipole: str | Path | TensorModel | None = None,
        table_error: float = TABLE_ERROR,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dipole = checkpoint.load_tensor(dipole, device, precision) if isinstance(dipole, str | Path) else dipole
        if self.dipole is not None and self.dipole.kind != "dipole":
            raise ConfigError(f"the model given for the dipole is one of the kind {self.dipole.kind}")
        self._given = fparam, aparam
        if isinstance(model, str | Path):
            model = checkpoint.load(model, device, precision, table_error=table_error)
        self.potential = model
        self.committee: CommitteeResult | None = None
        self._model = Pieces(self.potential)

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, by name; parameters too."""
        changes: list[str] = super().check_state(atoms, tol)  # type: ignore[no-untyped-call]
        if self.atoms is None:
            return changes
        pairs = zip(("fparam", "aparam"), self._parameters(atoms), self._parameters(self.atoms), strict=True)
        return changes + [name for name, new, old in pairs if not np.array_equal(new, old)]

    def _parameters(self, atoms: ase.Atoms) -> tuple[Any, Any]:
        """`fparam` and `aparam` of a structure: its own, or those given to the calculator."""
        fparam, aparam = self._given
        own = atoms.arrays.get("aparam", atoms.info.get("aparam"))
        return atoms.info.get("fparam", fparam), aparam if own is None else own

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate all properties at once, as ASE asks for one of them.

        Raises:
            StructureError: a species that the model does not know, or a structure that has no answer.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise StructureError("there are no atoms to evaluate; set atoms.calc and ask the atoms")
        self.results, self.committee = {}, None
        self.atoms = atoms.copy()
        self.results = self._evaluate(self.atoms)

    def _evaluate(self, atoms: ase.Atoms) -> dict[str, Any]:
        types = species_types(atoms, self.potential.species)
        cell, parameters = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0), self._parameters(atoms)
        frames = Frames.single(atoms.positions, types, cell, atoms.pbc.tolist(), *parameters)
        result = self._model.evaluate(frames if self.dipole is None else suited(frames, self.potential))
        self.committee = result.committee
        energy = float(result.energy[0])
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": result.atom_energy,
            "forces": result.forces,
        }
        if atoms.pbc.all():
            results["stress"] = full_3x3_to_voigt_6_stress(-result.virial[0] / atoms.get_volume())
        if self.dipole is not None:
            seen = replace(frames, types=species_types(atoms, self.dipole.species))
            results["dipole"] = self.dipole.evaluate(suited(seen, self.dipole)).total[0]
        return results


def species_types(atoms: ase.Atoms, species: Sequence[str]) -> Ints:
    """Index of each atom's chemical symbol in a model's species, (n_atoms,), int64.

    Raises:
        StructureError: the model does not know one of the symbols.
    """
    index = {symbol: k for k, symbol in enumerate(species)}
    if unknown := sorted(set(atoms.symbols) - set(index)):
        raise StructureError(
            f"the model knows the species {', '.join(species)}; the atoms hold {', '.join(unknown)} as well, "
            "which need a model trained on them"
        )
    return np.array([index[symbol] for symbol in atoms.symbols], dtype=np.int64)
