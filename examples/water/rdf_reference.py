"""Compute the reference curves of the demo's picture from frames of DFT molecular dynamics.

usage: python rdf_reference.py DATA OUT.csv

DATA is a directory in DeePMD's npy format: `type.raw`, `type_map.raw` and `set.*/coord.npy`, `set.*/box.npy`.
"""

import sys
from pathlib import Path

import numpy as np

from dpserver.demo.analysis import distribution, write_distribution


def main(data: Path, out: Path) -> None:
    """Average g(r) over all frames of `data` and write the table."""
    types = np.loadtxt(data / "type.raw", dtype=int)
    names = (data / "type_map.raw").read_text(encoding="utf-8").split()
    sets = sorted(data.glob("set.*"))
    positions = np.concatenate([np.load(s / "coord.npy") for s in sets]).astype(np.float64)
    cells = np.concatenate([np.load(s / "box.npy") for s in sets]).astype(np.float64)
    curves = distribution(
        positions.reshape(len(positions), -1, 3), cells.reshape(-1, 3, 3), tuple(names[t] for t in types)
    )
    write_distribution(out, curves, f"g(r) of {data.name}: {len(positions)} frames of {len(types)} atoms; r in Å")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
