"""Drift of the conserved quantity: i-PI moves 64 waters at constant energy on the shipped model, through the daemon.

    python benchmarks/nve_drift.py --timestep 0.25 --steps 10000 --precision double

Appends a record to benchmarks/results/nve_drift.json: the slope of a straight line through the conserved quantity, its
standard error from ten blocks, and the fluctuation about the line.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import records

from dpserver.demo.trajectory import read_properties
from dpserver.units import HARTREE

ROOT = Path(__file__).resolve().parents[1]
WATER = ROOT / "examples" / "water"
N_ATOMS = 192
N_BLOCKS = 10


def simulate(folder: Path, model: Path, timestep: float, steps: int, precision: str) -> dict[str, np.ndarray]:
    """Run i-PI and the daemon; return the columns of i-PI's property file."""
    address = f"nve_{uuid.uuid4().hex[:8]}"
    text = (WATER / "ipi-nve" / "input.xml").read_text(encoding="utf-8")
    for old, new in (
        (r"<address>[^<]*<", f"<address> {address} <"),
        (r"<total_steps>[^<]*<", f"<total_steps> {steps} <"),
        (r'"femtosecond">[^<]*<', f'"femtosecond"> {timestep} <'),
        (r"\.\./water\.xyz", str(WATER / "water.xyz")),
    ):
        text, count = re.subn(old, new, text)
        assert count == 1, old
    (folder / "input.xml").write_text(text, encoding="utf-8")
    with (folder / "i-pi.log").open("wb") as log:
        ipi = subprocess.Popen([Path(sys.executable).with_name("i-pi"), "input.xml"], cwd=folder, stdout=log)
        try:
            subprocess.run(
                [sys.executable, "-m", "dpserver", "--model", model, "--template", WATER / "water.xyz",
                 "--unix", address, "--precision", precision, "--once", "--timeout", "60", "--log-level", "warning"],
                check=True,
            )  # fmt: skip
            ipi.wait(60)
        finally:
            ipi.kill()
    return read_properties(folder / "simulation.out")


def slope(time: np.ndarray, energy: np.ndarray) -> float:
    """Slope of the straight line of least squares."""
    return float(np.polyfit(time, energy, 1)[0])


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WATER / "w.pt")
    parser.add_argument("--timestep", type=float, default=0.25, help="fs")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--precision", default="double", choices=["double", "mixed", "single"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = simulate(Path(folder), args.model.resolve(), args.timestep, args.steps, args.precision)
    time = table["time"] * 1e-3  # ns
    conserved = table["conserved"] * HARTREE * 1e3 / N_ATOMS  # meV/atom
    drift = slope(time, conserved)
    # Leave one block out: neighbouring steps are correlated, whole blocks hardly.
    blocks = np.array_split(np.arange(len(time)), N_BLOCKS)
    estimates = [slope(np.delete(time, b), np.delete(conserved, b)) for b in blocks]
    error = np.sqrt((N_BLOCKS - 1) * np.var(estimates))
    records.append(
        "nve_drift",
        {
            "model": args.model.name,
            "timestep_fs": args.timestep,
            "length_ps": float(table["time"][-1]),
            "precision": args.precision,
            "drift_mev_per_atom_ns": drift,
            "drift_standard_error": float(error),
            "fluctuation_mev_per_atom": float(np.std(conserved - np.polyval(np.polyfit(time, conserved, 1), time))),
            "mean_temperature_k": float(table["temperature"].mean()),
        },
    )


if __name__ == "__main__":
    main()
