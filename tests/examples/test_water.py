"""Every example of examples/water, run as its README says, with fewer steps and sockets of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import ase.io
import numpy as np
import pytest

from dpserver.ase import DPCalculator
from dpserver.demo.trajectory import read_properties
from dpserver.units import BOLTZMANN, HARTREE

ROOT = Path(__file__).resolve().parents[2]
WATER = ROOT / "examples" / "water"
N_ATOMS = 192
SHELL = f"""
set -e
dpserver() {{ {sys.executable} -m dpserver "$@"; }}
python() {{ {sys.executable} "$@"; }}
export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} DPSERVER_TIMEOUT=60
"""


def run(name: str, tmp_path: Path, replacements: dict[str, str]) -> Path:
    """Run the shell block of an example's README in a copy of it.

    Args:
        name: of the example.
        tmp_path: for the copy.
        replacements: of patterns in README and input, each of which must be found.
    """
    for file in WATER.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    folder = tmp_path / name
    shutil.copytree(WATER / name, folder)
    found = dict.fromkeys(replacements, False)
    for file in (f for f in folder.iterdir() if f.suffix in {".xml", ".md", ".py", ".json"}):
        text = file.read_text(encoding="utf-8")
        for old, new in replacements.items():
            text, count = re.subn(old, new, text)
            found[old] |= count > 0
        file.write_text(text, encoding="utf-8")
    assert all(found.values()), found
    commands = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert commands
    script = SHELL + "\n".join(commands) + "\nwait\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=150, env=os.environ, check=False
    )
    logs = "".join(log.read_text(encoding="utf-8") for log in folder.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return folder


def run_ipi(name: str, tmp_path: Path, steps: int) -> dict[str, np.ndarray]:
    """Run one of i-PI's examples; returns the columns of its property file."""
    unique = {"water_": f"water_{uuid4().hex[:8]}_", "<total_steps>[^<]*<": f"<total_steps> {steps} <"}
    table = read_properties(run(name, tmp_path, unique) / "simulation.out")
    np.testing.assert_array_equal(table["step"], np.arange(steps + 1))
    return table


def first_energy() -> float:
    """What the in-process calculator says of the initial structure, eV."""
    atoms = ase.io.read(WATER / "water.xyz")
    atoms.calc = DPCalculator(WATER / "w.pt")
    return float(atoms.get_potential_energy())


def check(table: dict[str, np.ndarray], drift: float, temperature: tuple[float, float] = (150.0, 450.0)) -> None:
    """The first energy is the in-process one; the conserved quantity stays within `drift` meV per atom."""
    assert table["potential"][0] * HARTREE == pytest.approx(first_energy(), rel=1e-8)
    change = (table["conserved"] - table["conserved"][0]) * HARTREE * 1e3 / N_ATOMS
    assert np.abs(change).max() < drift, change
    assert np.all((temperature[0] < table["temperature"]) & (table["temperature"] < temperature[1]))


def test_nve(tmp_path: Path) -> None:
    check(run_ipi("ipi-nve", tmp_path, 20), drift=0.3)


def test_nvt(tmp_path: Path) -> None:
    check(run_ipi("ipi-nvt", tmp_path, 20), drift=0.3)


def test_npt(tmp_path: Path) -> None:
    table = run_ipi("ipi-npt", tmp_path, 20)
    check(table, drift=0.3)
    assert len(set(table["volume"])) == 21
    np.testing.assert_allclose(table["volume"], 12.444661**3, rtol=0.02)
    np.testing.assert_allclose(table["density"], 0.992, rtol=0.03)
    assert np.all(np.abs(table["pressure_md"]) < 3000)


def test_pimd(tmp_path: Path) -> None:
    table = run_ipi("ipi-pimd", tmp_path, 6)
    check(table, drift=5.0)
    assert table["kinetic_cv"][0] * HARTREE == pytest.approx(1.5 * N_ATOMS * BOLTZMANN * 300.0, rel=1e-4)


def test_piglet(tmp_path: Path) -> None:
    check(run_ipi("ipi-piglet", tmp_path, 6), drift=5.0, temperature=(150.0, 800.0))


def test_multiple_time_steps(tmp_path: Path) -> None:
    check(run_ipi("ipi-mts", tmp_path, 8), drift=5.0)


def test_ring_polymer_contraction(tmp_path: Path) -> None:
    check(run_ipi("ipi-rpc", tmp_path, 6), drift=5.0)
