"""Frames of close contacts: whole molecules, one of them moved, labels that fit the move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.science import contacts, spce
from benchmarks.science.common import System, dpserver, read_system
from dpserver.errors import ConfigError
from dpserver.frames import Floats, Frames


def liquid(n_frames: int = 3) -> System:
    """Liquid water, labelled by the empirical model itself; O first, then H in no order, across the boundary."""
    rng = np.random.default_rng(3)
    atoms = spce.liquid(4, seed=1)
    order = np.concatenate([np.arange(0, 192, 3), rng.permutation(np.setdiff1d(np.arange(192), np.arange(0, 192, 3)))])
    frames, found = [], []
    for _ in range(n_frames):
        x = atoms.positions + rng.normal(0.0, 0.02, (192, 3)) + rng.uniform(-5.0, 5.0, 3)
        found.append(spce.evaluate(Frames.single(x, np.tile([0, 1, 1], 64), atoms.cell.array)))
        frames.append((x - np.floor(x @ np.linalg.inv(atoms.cell.array)) @ atoms.cell.array)[order])
    symbols = tuple(np.array(list("OHH" * 64))[order])
    return System(
        symbols,
        np.array([s == "H" for s in symbols], dtype=np.int64),
        np.array(frames),
        np.repeat(atoms.cell.array[None], n_frames, axis=0),
        np.array([f.energy[0] for f in found]),
        np.array([f.forces[order] for f in found]),
    )


def distances(molecule: Floats, others: Floats, cell: Floats) -> Floats:
    """Between the atoms of a molecule and others, (3, n)."""
    vectors = molecule[:, None] - others
    return np.asarray(np.linalg.norm(vectors - np.rint(vectors @ np.linalg.inv(cell)) @ cell, axis=2))


def test_molecules_are_found_whole() -> None:
    system = liquid(1)
    whole, numbers = contacts.molecules(system.positions[0], system.cells[0], system.symbols)  # type: ignore[misc]
    assert sorted(numbers.ravel()) == list(range(192))
    assert [system.symbols[k] for k in numbers[5]] == ["O", "H", "H"]
    bonds = np.linalg.norm(whole[:, 1:] - whole[:, :1], axis=2)
    assert 0.8 < bonds.min() < bonds.max() < 1.3


def test_a_frame_with_a_torn_molecule_is_left_out() -> None:
    system = liquid(1)
    positions = system.positions[0].copy()
    hydrogen = system.symbols.index("H")
    positions[hydrogen] = positions[0] + [0.7, 0.7, 0.0]  # an O with three H, or another with one
    owner = contacts.molecules(system.positions[0], system.cells[0], system.symbols)[1]  # type: ignore[index]
    assert hydrogen not in owner[0]
    assert contacts.molecules(positions, system.cells[0], system.symbols) is None


@pytest.mark.parametrize("k", range(3))
def test_one_molecule_is_moved_and_the_labels_say_what_it_costs(k: int) -> None:
    system = liquid()
    before, cell = system.positions[k], system.cells[k]
    positions, change, forces = contacts.contact(before, cell, system.symbols, np.random.default_rng(1))  # type: ignore[misc]
    shift = positions - before
    shift -= np.rint(shift @ np.linalg.inv(cell)) @ cell
    moved = np.flatnonzero(np.linalg.norm(shift, axis=1) > 1e-9)
    assert [system.symbols[j] for j in moved] == ["O", "H", "H"]
    np.testing.assert_allclose(shift[moved], np.repeat(shift[moved[:1]], 3, axis=0), atol=1e-9)
    nearer = distances(positions[moved], np.delete(positions, moved, axis=0), cell)
    is_new = nearer < distances(before[moved], np.delete(before, moved, axis=0), cell).min(axis=1, keepdims=True)
    limits = {(0, 0): (2.05, 2.5), (0, 1): (1.15, 1.45), (1, 1): (1.1, 1.5)}
    kind = np.array([[limits[min(a, b), max(a, b)] for b in np.delete(system.types, moved)] for a in (0, 1, 1)])
    assert (is_new & (kind[:, :, 0] < nearer) & (nearer < kind[:, :, 1])).any()
    assert contacts.CHANGE[0] < change < contacts.CHANGE[1]
    # The frames are the empirical model's own, so that what came out must be too.
    whole, numbers = contacts.molecules(positions, cell, system.symbols)  # type: ignore[misc]
    exact = spce.evaluate(Frames.single(whole.reshape(-1, 3), np.tile([0, 1, 1], 64), cell))
    assert system.energy[k] + change == pytest.approx(float(exact.energy[0]), abs=1e-7)
    np.testing.assert_allclose((system.forces[k] + forces)[numbers.ravel()], exact.forces, atol=1e-6)


def test_no_two_molecules_come_nearer_than_they_may() -> None:
    system, generator = liquid(1), np.random.default_rng(2)
    whole, cell = contacts.molecules(system.positions[0], system.cells[0], system.symbols)[0], system.cells[0]  # type: ignore[index]
    made = [found for _ in range(300) if (found := contacts.pushed(whole, cell, generator)) is not None]
    assert len(made) > 5
    for found in made:
        (moved,) = np.flatnonzero(np.abs(found - whole).max(axis=(1, 2)) > 0)
        r = distances(found[moved], np.delete(found, moved, axis=0).reshape(-1, 3), cell)
        hydrogens = np.array([0, 1, 1])[:, None] + np.tile([0, 1, 1], 63)
        assert all(r[hydrogens == k].min() > least for k, least in contacts.LEAST.items())


def written(folder: Path, system: System) -> Path:
    """A system on the disk, its species in another order."""
    columns = {"coord": system.positions, "box": system.cells, "energy": system.energy, "force": system.forces}
    spce.write_npy(folder, ("H", "O"), 1 - system.types, columns)
    return folder


def test_other_atoms_and_no_contact_are_refused(tmp_path: Path) -> None:
    system = liquid(1)
    torn = system.positions.copy()
    torn[0, system.symbols.index("H")] = torn[0, 0] + [0.7, 0.7, 0.0]
    one = written(tmp_path / "torn", replace(system, positions=torn))
    with pytest.raises(ConfigError, match="no frame has a contact"):
        contacts.write(tmp_path / "out", [one], seed=1)
    other = written(tmp_path / "other", replace(system, types=system.types[::-1]))
    with pytest.raises(ConfigError, match=r"other: its atoms are not those of .*torn"):
        contacts.write(tmp_path / "out", [one, other], seed=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="torn exists and is not empty"):
        contacts.write(one, [one], seed=1)


def test_what_is_written_can_be_trained_with(tmp_path: Path) -> None:
    system = liquid(2)
    assert contacts.write(tmp_path / "contacts", [written(tmp_path / "source", system)], seed=1) == 2
    made = read_system(tmp_path / "contacts")
    assert made.symbols == system.symbols
    assert len(made.energy) == 2
    config = {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": {"type": "se_e2_a", "sel": [40, 80], "rcut": 5.0, "neuron": [4], "axis_neuron": 2},
            "fitting_net": {"neuron": [4]},
        },
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-4},
        "training": {"training_data": {"systems": [str(tmp_path / "contacts")]}, "numb_steps": 1},
    }
    (tmp_path / "input.json").write_text(json.dumps(config), encoding="utf-8")
    dpserver("train", "input.json", "-o", "w.pt", cwd=tmp_path)
    assert (tmp_path / "w.pt").exists()
