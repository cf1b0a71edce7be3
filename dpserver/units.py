"""Physical constants, stated once.

CODATA 2014, derived from its fundamental constants in float64 exactly as ASE derives its own default set, so that a
length or an energy that ASE sends comes back unchanged to the last bit. Bohr and Hartree belong to the wire; inside
dpserver everything is in Å, eV and eV/Å.
"""

from __future__ import annotations

from typing import Final

BOHR: Final = 0.5291772105638411  # Å
HARTREE: Final = 27.211386024367243  # eV
BOLTZMANN: Final = 8.617330337217213e-05  # eV/K

HARTREE_PER_BOHR: Final = HARTREE / BOHR  # eV/Å
COULOMB: Final = HARTREE * BOHR  # e²/(4πε₀), eV Å
KCAL_PER_MOL: Final = 0.04336410390059322  # eV
