"""Trajectories through the daemon are those of the same model in the process of the code that moves the atoms."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

pytest.importorskip("ipi")
pytest.importorskip("ase")

import ase.io
from ase import units
from ase.md.verlet import VelocityVerlet

from dpserver.ase import DPCalculator
from tests.patience import JOB_PATIENCE, PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ROOT / "drivers" / "ipi"
WATER = ROOT / "examples" / "water"
N_ATOMS = 192


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where i-PI runs, with all that the inputs of drivers/ipi name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for file in (WATER / "water.xyz", WATER / "w.pt", DRIVERS / "dp_pes.py"):
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def prepare(folder: Path, name: str, steps: int, beads: int, dynamics: str, options: str = "") -> str:
    """Write an input of drivers/ipi with other numbers, and full precision in its output; returns the socket's name."""
    address = f"water_{uuid4().hex[:8]}"
    exact = f'<trajectory filename="exact" stride="{steps}" format="bin"> positions </trajectory>'
    text = (DRIVERS / name).read_text(encoding="utf-8")
    for old, new in {
        "<total_steps>[^<]*<": f"<total_steps> {steps} <",
        'prefix="simulation">': f'prefix="{Path(name).stem}"> {exact}',
        'nbeads="4"': f'nbeads="{beads}"',
        "<batch_size> 4": f"<batch_size> {beads}",
        "<address>[^<]*<": f"<address> {address} <",
        'dynamics mode="nvt" splitting="baoab"': f'dynamics mode="{dynamics}"',
        "model: w.pt": f"model: w.pt, precision: double{options}",
    }.items():
        text = re.sub(old, new, text)
    (folder / name).write_text(text, encoding="utf-8")
    return address


def ipi(name: str) -> list[str]:
    return [str(Path(sys.executable).with_name("i-pi")), name]


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not survive a failed test."""
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            yield process
        finally:
            process.kill()


def positions(folder: Path, name: str, beads: int) -> np.ndarray:
    """First and last frame of every bead, (n_beads, 2, n_atoms, 3), Bohr."""
    return np.array([_read_binary(path) for path in sorted(folder.glob(f"{name}.exact_*"))]).reshape(beads, 2, -1, 3)


def _read_binary(path: Path) -> list[np.ndarray]:
    """i-PI's records: 9 floats, an integer N, 3 N floats, an integer and text of a fixed length."""
    raw = path.read_bytes()
    size = len(raw) // 2
    return [np.frombuffer(raw[start + 80 :], dtype=np.float64, count=3 * N_ATOMS) for start in (0, size)]


@pytest.mark.parametrize(("beads", "dynamics", "steps"), [(1, "nve", 20), (3, "nvt", 8)])
def test_ipi(folder: Path, beads: int, dynamics: str, steps: int) -> None:
    prepare(folder, "direct.xml", steps, beads, dynamics)
    address = prepare(folder, "socket.xml", steps, beads, dynamics)
    daemon = [sys.executable, "-m", "dpserver", "--model", "w.pt", "--template", "water.xyz", "--unix", address]
    daemon += ["--once", "--timeout", f"{PATIENCE:g}", "--precision", "double", "--connections", str(beads)]
    with running(daemon, folder) as engine:
        subprocess.run(ipi("socket.xml"), cwd=folder, timeout=JOB_PATIENCE, check=True)
        assert engine.wait(JOB_PATIENCE) == 0
    subprocess.run(ipi("direct.xml"), cwd=folder, timeout=JOB_PATIENCE, check=True)
    served, direct = positions(folder, "socket", beads), positions(folder, "direct", beads)
    assert np.abs(served[:, 1] - served[:, 0]).max() > 0.01
    np.testing.assert_allclose(served, direct, rtol=0, atol=1e-8)
    tables = [np.loadtxt(folder / f"{name}.out") for name in ("socket", "direct")]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-8)


def test_ipi_driver(folder: Path) -> None:
    """The PES file in i-PI's own driver, over the same socket."""
    address = prepare(folder, "socket.xml", 3, 1, "nve")
    driver = [str(Path(sys.executable).with_name("i-pi-driver-py")), "-u", "-a", address, "-m", "custom"]
    driver += ["-P", "dp_pes.py", "-o", "model=w.pt,template=water.xyz,precision=double"]
    with running(ipi("socket.xml"), folder) as server:
        while not Path(f"/tmp/ipi_{address}").exists() and server.poll() is None:
            time.sleep(0.02)
        subprocess.run(driver, cwd=folder, timeout=JOB_PATIENCE, check=True)
        assert server.wait(JOB_PATIENCE) == 0
    prepare(folder, "direct.xml", 3, 1, "nve")
    subprocess.run(ipi("direct.xml"), cwd=folder, timeout=JOB_PATIENCE, check=True)
    np.testing.assert_allclose(positions(folder, "socket", 1), positions(folder, "direct", 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("is_threaded", [True, False])
def test_refused_structure_ends_the_run(folder: Path, is_threaded: bool) -> None:
    """The wrong order of species is told, and neither computed nor waited for."""
    prepare(folder, "direct.xml", 3, 2, "nvt")
    text = (folder / "direct.xml").read_text(encoding="utf-8")
    text = text.replace("template: water.xyz", "species: O H H").replace('"True"', f'"{is_threaded}"')
    (folder / "direct.xml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ipi("direct.xml"), cwd=folder, timeout=JOB_PATIENCE, capture_output=True, text=True, check=False
    )
    assert "the atoms are not in the order of species (O H H)" in done.stdout + done.stderr
    rows = (folder / "direct.out").read_text(encoding="utf-8").splitlines()
    assert not any(len(row.split()) == 5 for row in rows if not row.startswith("#"))


def test_ase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "drivers" / "ase")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from dpserver_ase import DPServer

    model, steps = WATER / "w.pt", 20
    thermal = np.random.default_rng(5).normal(size=(N_ATOMS, 3))

    def trajectory(calculator) -> tuple[np.ndarray, np.ndarray]:
        atoms = ase.io.read(WATER / "water.xyz")
        atoms.set_velocities(thermal * np.sqrt(units.kB * 300 / atoms.get_masses())[:, None])
        atoms.calc = calculator
        energies = []
        with VelocityVerlet(atoms, 0.5 * units.fs) as dynamics:
            dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
            dynamics.run(steps)
        return atoms.positions, np.array(energies)

    with DPServer(model, precision="double") as calculator:
        served, served_energies = trajectory(calculator)
    direct, energies = trajectory(DPCalculator(model, precision="double"))
    np.testing.assert_allclose(served, direct, rtol=0, atol=1e-8)
    np.testing.assert_allclose(served_energies, energies, rtol=0, atol=1e-8)
    assert np.abs(energies - energies[0]).max() < 1e-3 * N_ATOMS
