"""Relax the atoms and the cell of water with ASE, in one process."""

import sys
from pathlib import Path

from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS

from dpserver.ase import DPCalculator

HERE = Path(__file__).resolve().parent

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
atoms = read(HERE.parent / "water.xyz")
atoms.calc = DPCalculator(HERE.parent / "w.pt", precision="double")
print(f"{atoms.get_potential_energy():.6f} eV, {atoms.get_volume():.2f} Å³ before")
BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile="bfgs.log").run(fmax=0.05, steps=steps)
print(f"{atoms.get_potential_energy():.6f} eV, {atoms.get_volume():.2f} Å³ after")
atoms.write("relaxed.xyz")
