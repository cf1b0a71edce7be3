"""Label structures for a training: the shipped model is the teacher, in the place of a DFT code."""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin

from dpserver.ase import DPCalculator

WATER = Path(__file__).resolve().parent.parent / "water.xyz"

n_frames = int(sys.argv[1]) if len(sys.argv) > 1 else 50
atoms = read(WATER)
atoms.calc = DPCalculator(WATER.with_name("w.pt"))
rng = np.random.default_rng(1)
dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=400, friction=0.02 / units.fs, fixcm=False, rng=rng)
frames = []
for _ in range(n_frames):
    dynamics.run(10)
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(frame, **{p: atoms.calc.results[p] for p in ("energy", "forces", "stress")})
    frames.append(frame)
n_train = n_frames * 4 // 5
write("train.xyz", frames[:n_train])
write("valid.xyz", frames[n_train:])
print(f"{n_train} structures in train.xyz, {n_frames - n_train} in valid.xyz")
