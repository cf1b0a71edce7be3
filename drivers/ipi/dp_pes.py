"""A Deep Potential inside i-PI or its Python driver: one evaluation for all structures of a batch.

    i-pi-driver-py -u -a ADDRESS -m custom -P dp_pes.py -o model=w.pt,template=water.xyz

    <ffdirect name="dp" threaded="True">
      <pes> custom </pes>
      <pes_path> dp_pes.py </pes_path>
      <parameters> {model: w.pt, template: water.xyz} </parameters>
      <batch_size> 8 </batch_size>
    </ffdirect>

i-PI's conventions: atomic units, lattice vectors as columns of the cell, virial = -dE/d(strain).
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ipi.pes.dummy import Dummy_driver
from ipi.utils.softexit import softexit
from numpy.typing import NDArray

import dpserver
from dpserver.engine import Assigner, Engine, Order, Request
from dpserver.errors import ConfigError, DPServerError
from dpserver.ipi import Structures
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR

__DRIVER_NAME__ = "dp"
__DRIVER_CLASS__ = "DeepPotential"

Floats = NDArray[np.float64]
Answer = tuple[float, Floats, Floats, str]
"""Energy, forces (n_atoms, 3), virial (3, 3), all in atomic units, and what a committee has to add, as JSON."""

_OPTIONS = ("model", "template", "species", "device", "precision")
_IPI_OPTIONS = ("verbose", "verbosity")
"""What i-PI's base class takes, and what its <ffdirect> adds of its own accord."""


class DeepPotential(Dummy_driver):  # type: ignore[misc]
    """Evaluates batches of structures on one potential.

    Args:
        model: a model file.
        template: structure file with the atoms in i-PI's order.
        species: symbols in i-PI's order between spaces, repeated as needed, instead of a template; without either the
            model's own template rules.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one the model was trained in.
        i_pi: what i-PI adds, `verbose` and `verbosity`; any other name is refused.

    Raises:
        ConfigError: there is no model, an option is unknown, or the order of the atoms is given twice.
        ModelFileError: the model file cannot be used.
        DeviceError: the device does not exist.
    """

    def __init__(
        self,
        model: str = "",
        template: str = "",
        species: str = "",
        device: str = "auto",
        precision: str | None = None,
        **i_pi: Any,
    ) -> None:
        _check_names(i_pi)
        if not model:
            raise ConfigError(
                "no model is given; write -o model=w.pt,template=water.xyz for i-pi-driver-py, or "
                "<parameters> {model: w.pt, template: water.xyz} </parameters> in i-PI's input"
            )
        super().__init__(**i_pi)
        potential = dpserver.load(model, device, precision)
        self._engine = Engine(potential)
        self._assigner = Assigner(potential, _order(template, species), "dp_pes")

    def compute(self, cell: Floats | list[Floats], pos: Floats | list[Floats]) -> Answer | list[Answer]:
        """Evaluate one structure, or a list of them at once.

        Args:
            cell: lattice vectors as columns, (3, 3), Bohr; or a list.
            pos: positions, (n_atoms, 3), Bohr; or a list of the same length, of structures of one size.

        Raises:
            DPServerError: a structure has no answer; nothing that is not finite is ever returned.
        """
        if isinstance(cell, list):
            return self._guarded(cell, pos)
        return self._guarded([cell], [pos])[0]

    def _guarded(self, cells: list[Floats], positions: list[Floats]) -> list[Answer]:
        """Evaluate; on failure raise, and end the run if it is i-PI itself that asks.

        i-PI asks from threads of its own. An error there ends that thread alone, and i-PI waits for ever.
        """
        try:
            return self._evaluate(cells, positions)
        except DPServerError as error:
            if threading.current_thread() is not threading.main_thread():
                softexit.trigger(status="bad", message=f" @dp_pes: {error}")
            raise

    def _evaluate(self, cells: list[Floats], positions: list[Floats]) -> list[Answer]:
        structures = Structures(np.array(positions) * BOHR, np.array(cells).transpose(0, 2, 1) * BOHR)
        (forces,) = self._engine.answer([Request(structures, self._assigner, has_extras=True)])
        if isinstance(forces, DPServerError):
            raise forces
        in_atomic_units = (forces.energy / HARTREE, forces.forces / HARTREE_PER_BOHR, forces.virial / HARTREE)
        extras = [extra.decode() for extra in forces.extras] or [""] * structures.n_frames
        return [(float(e), f, v, x) for e, f, v, x in zip(*in_atomic_units, extras, strict=True)]


def _check_names(names: Iterable[str]) -> None:
    """Refuse an option that neither we nor i-PI know: it is a slip of the pen, and would have no effect."""
    for name in names:
        if name not in _IPI_OPTIONS:
            similar = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"known are {', '.join(_OPTIONS)}"
            raise ConfigError(f"option {name!r} of dp_pes is unknown; {hint}")


def _order(template: str, species: str) -> Order | None:
    if template and species:
        raise ConfigError("both a template and species are given; give one of them")
    if template:
        return Order.from_file(Path(template), "template")
    return Order.from_text(species, "species") if species else None
