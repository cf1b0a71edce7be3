"""Langevin dynamics of water with ASE, on a daemon that starts and stops with the script."""

import sys
from pathlib import Path

from ase import units
from ase.io import read
from ase.md.langevin import Langevin

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "drivers" / "ase"))
from dpserver_ase import DPServer  # noqa: E402

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
atoms = read(HERE.parent / "water.xyz")
with DPServer(HERE.parent / "w.pt") as atoms.calc:
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False,
        logfile="md.log", trajectory="md.traj", loginterval=min(10, steps),
    )  # fmt: skip
    dynamics.run(steps)
    print(f"{atoms.get_potential_energy():.6f} eV, {atoms.get_temperature():.0f} K after {steps} steps")
