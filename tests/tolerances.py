"""How far two ways to the same number may lie apart: one table, by dtype of the least precise part."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Absolute deviations for structures whose forces are about 1 eV/Å."""

    energy: float  # eV per atom
    forces: float  # eV/Å
    virial: float  # eV per atom


TOLERANCES = {
    torch.float64: Tolerance(energy=1e-11, forces=1e-10, virial=1e-10),
    torch.float32: Tolerance(energy=2e-5, forces=1e-4, virial=1e-4),
}

DIFFERENCES = 1e-6
"""Derivatives against central differences: eV/Å for forces; virials and loss gradients relative to the largest."""
