"""The detail files of a test: reference beside prediction, number by number, as DeePMD-kit's `dp test -d` writes them.

- `PREFIX.e.out`: energy of each frame, eV; `PREFIX.e_peratom.out`: the same per atom
- `PREFIX.f.out`: forces, a line for each atom, eV/Å
- `PREFIX.v.out`: virial, nine components, eV; `PREFIX.v_peratom.out`: the same per atom
- `PREFIX.s.out`: stress, eV/Å³, of periodic systems with a virial
- `PREFIX.out`, `PREFIX.out.1`, …: dipole or polarizability of each frame, or of its atoms, a file for each system

Every file has a header line and then one line for each frame or atom: first the columns of the reference, then those of
the prediction. The lines of all systems follow one another. Where a system lacks a label its reference is zero, as with
DeePMD-kit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from dpserver.errors import ConfigError, DataError
from dpserver.files import check_folder, writing
from dpserver.frames import Floats
from dpserver.train.report import Comparison

_TENSOR: Final = [f"{a}{b}" for a in "xyz" for b in "xyz"]
_COMPONENTS: Final = {"dipole": ["x", "y", "z"], "polar": [f"p{c}" for c in _TENSOR]}


def _columns(*names: str) -> str:
    """The header of reference and prediction."""
    return " ".join(f"{source}_{name}" for source in ("data", "pred") for name in names)


class DetailFiles:
    """Writes the details of one system after the other.

    Args:
        prefix: what the names of the files start with; as in DeePMD-kit, what follows a last dot in it is dropped.
        atomic: write dipoles and polarizabilities of atoms instead of those of frames.

    Raises:
        ConfigError: files cannot be written there.
    """

    def __init__(self, prefix: Path, *, atomic: bool = False) -> None:
        if not prefix.name or not prefix.absolute().parent.is_dir():
            raise ConfigError(f"--detail {prefix}: expected the beginning of a file name in an existing folder")
        check_folder(prefix.parent, f"--detail {prefix}")
        self.prefix = prefix
        self.atomic = atomic
        self.written: list[Path] = []
        self._n_systems = 0

    def write(self, comparison: Comparison) -> None:
        """Append the lines of a system to the files.

        Raises:
            DataError: the frames have different numbers of atoms with a dipole or polarizability, so that theirs fit
                into no table.
            OutputError: a file cannot be written.
        """
        kinds = [kind for kind in _COMPONENTS if kind in comparison.predicted]
        if kinds:
            self._write_tensor(kinds[0], comparison)
        else:
            self._write_energies(comparison)
        self._n_systems += 1

    def _write_energies(self, comparison: Comparison) -> None:
        ref, predicted, name = comparison.reference, comparison.predicted, comparison.reference.name
        n = ref.counts[:, None]
        energy = _beside(ref.energy, predicted["energy"], 1)
        virial = _beside(ref.virial, predicted["virial"], 9)
        components = _columns(*(f"v{c}" for c in _TENSOR))
        self._append(".e.out", energy, f"{name}: {_columns('e')}")
        self._append(".e_peratom.out", energy / n, f"{name}: {_columns('e')}")
        self._append(".f.out", _beside(ref.forces, predicted["forces"], 3), f"{name}: {_columns('fx', 'fy', 'fz')}")
        self._append(".v.out", virial, f"{name}: {components}")
        self._append(".v_peratom.out", virial / n, f"{name}: {components}")
        if "stress" in comparison.pairs:
            stress = _beside(*comparison.pairs["stress"], 9)
            self._append(".s.out", stress, f"{name} (eV/Å³): {_columns(*(f's{c}' for c in _TENSOR))}")

    def _write_tensor(self, kind: str, comparison: Comparison) -> None:
        ref, components = comparison.reference, _COMPONENTS[kind]
        suffix = ".out" if not self._n_systems else f".out.{self._n_systems}"
        if not self.atomic:
            rows = _beside(ref.labels.get(kind), comparison.predicted[kind], len(components))
            self._append(suffix, rows, _columns(*components))
            return
        selected, label = comparison.is_selected, f"atom_{kind}"
        counts = np.bincount(ref.frames.frame_idx, selected, ref.n_frames).astype(int)
        if not counts[0] or (counts != counts[0]).any():
            raise DataError(f"{ref.name}: {label} of frames with {sorted(set(counts.tolist()))} atoms fit no one table")
        labels = ref.labels.get(label)
        rows = _beside(
            None if labels is None else labels[selected],
            comparison.predicted[label][selected],
            counts[0] * len(components),
        )
        names = [f"{component}{k}" for k in range(1, counts[0] + 1) for component in components]
        self._append(suffix, rows, _columns(*names))

    def _append(self, suffix: str, rows: Floats, header: str) -> None:
        """Add lines to a file; the first time it is made anew, with a header."""
        path = self.prefix.with_suffix(suffix)
        is_new = path not in self.written
        with writing(path), path.open("w" if is_new else "a", encoding="utf-8") as stream:
            np.savetxt(stream, rows, header=header if is_new else "")
        if is_new:
            self.written.append(path)


def _beside(reference: Floats | None, predicted: Floats, width: int) -> Floats:
    """Columns of the reference, zero where there is none, and of the prediction; (n, 2 width)."""
    right = predicted.reshape(-1, width)
    left = np.zeros_like(right) if reference is None else reference.reshape(-1, width)
    return np.hstack([left, right])
