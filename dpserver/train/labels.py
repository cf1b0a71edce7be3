"""The labels of a data set: their names, shapes, and the files DeePMD-kit keeps them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Label:
    """What one label looks like.

    Attributes:
        shape: of the numbers of one frame, or of one atom; -1 is as many as there are.
        files: names of its file in a DeePMD set, without `.npy`; the first one found is read.
        is_atomic: whether there is one for each atom.
    """

    shape: tuple[int, ...]
    files: tuple[str, ...]
    is_atomic: bool = False


LABELS: Final = {
    "energy": Label((), ("energy",)),
    "forces": Label((3,), ("force",), is_atomic=True),
    "virial": Label((3, 3), ("virial",)),
    "atom_energy": Label((), ("atom_ener", "atomic_ener"), is_atomic=True),
    "atom_energy_coeff": Label((), ("atom_ener_coeff", "atomic_ener_coeff"), is_atomic=True),
    "atom_pref": Label((), ("atom_pref", "atomic_pref"), is_atomic=True),
    "drdq": Label((-1,), ("drdq",), is_atomic=True),
    "dipole": Label((3,), ("dipole",)),
    "atom_dipole": Label((3,), ("atom_dipole", "atomic_dipole"), is_atomic=True),
    "polar": Label((3, 3), ("polarizability",)),
    "atom_polar": Label((3, 3), ("atom_polarizability", "atomic_polarizability"), is_atomic=True),
    "atom_weight": Label((), ("atom_weight", "atomic_weight"), is_atomic=True),
    "copies": Label((), ("numb_copy",)),
}
"""Every label by the name of its field in `dpserver.train.data.LabelledFrames`, in the order they are described there.

A system has some of them; two sets of one system, or two frames of one file, have the same ones."""

TENSORS: Final = frozenset({"atom_dipole", "atom_polar"})
"""Labels that may be there for the atoms of some species only: DeePMD-kit's `sel_type`."""

PARAMETERS: Final = {
    "fparam": Label((-1,), ("fparam",)),
    "aparam": Label((-1,), ("aparam",), is_atomic=True),
}
"""What belongs to the structures instead, as in `dpserver.frames.Frames`."""

STRUCTURE: Final = {
    "positions": Label((3,), ("coord",), is_atomic=True),
    "cell": Label((3, 3), ("box",)),
}
"""The structures themselves."""

FIELDS: Final = {**STRUCTURE, **LABELS, **PARAMETERS}
"""All that a set may hold but types."""
