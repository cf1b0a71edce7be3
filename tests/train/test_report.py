"""Errors of a model: a model that is wrong by known amounts has known errors."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import DataError, StructureError
from dpserver.frames import CommitteeResult, ForceResult, Frames, TensorValues
from dpserver.train import report
from dpserver.train.data import LabelledFrames
from dpserver.train.report import Comparison, ErrorMeasure, as_dict, compare, overall, plot_parity


@dataclass
class Harmonic:
    """E = Σ k x²/2 of each atom about the origin, with `k` its type + 1; remembers the sizes of its batches."""

    species: tuple[str, ...] = ("A", "B")
    batches: list[int] = field(default_factory=list)
    refuses: bool = False

    def evaluate(self, frames: Frames) -> ForceResult:
        if self.refuses:
            raise StructureError("atoms 0 and 1 overlap")
        self.batches.append(frames.n_frames)
        k, x = frames.types[:, None] + 1.0, frames.positions
        atom_energy = (k * x**2).sum(axis=1) / 2
        energy = np.bincount(frames.frame_idx, atom_energy, frames.n_frames)
        virial = np.zeros((frames.n_frames, 3, 3))
        np.add.at(virial, frames.frame_idx, -(k * x)[:, :, None] * x[:, None, :])
        return ForceResult(energy, -k * x, virial, atom_energy, frames.frame_idx)


def labelled(sizes: list[int], name: str = "made", *, forces: bool = True, virial: bool = True) -> LabelledFrames:
    """Frames with the exact labels of `Harmonic`."""
    rng = np.random.default_rng(len(sizes))
    frames = Frames.concatenate(Frames.single(rng.normal(size=(n, 3)), np.arange(n) % 2) for n in sizes)
    exact = Harmonic().evaluate(frames)
    return LabelledFrames(
        frames, exact.energy, exact.forces if forces else None, exact.virial if virial else None, ("A", "B"), name
    )


def test_exact_model_has_no_error() -> None:
    found = compare(Harmonic(), labelled([2, 3, 4]))
    assert set(found.errors) == {"energy", "energy_per_atom", "force", "virial", "virial_per_atom"}
    for error in found.errors.values():
        assert error.mae == error.rmse == 0.0


def test_known_differences() -> None:
    made = labelled([2, 4])
    assert made.forces is not None
    assert made.virial is not None
    shift = np.array([[0.3, 0.0, 0.0], *[[0.0, 0.0, 0.0]] * 5])
    predicted = {
        "energy": made.energy + np.array([0.4, -0.8]),
        "forces": made.forces + shift,
        "virial": made.virial - np.eye(3),
    }
    found = Comparison(made, predicted)
    e = found.errors
    assert (e["energy"].n, e["force"].n, e["virial"].n) == (2, 18, 18)
    assert e["energy"].mae == pytest.approx(0.6)
    assert e["energy"].rmse == pytest.approx(np.sqrt((0.16 + 0.64) / 2))
    assert e["energy_per_atom"].mae == pytest.approx(0.2)
    assert e["energy_per_atom"].rmse == pytest.approx(0.2)
    assert e["force"].mae == pytest.approx(0.3 / 18)
    assert e["force"].rmse == pytest.approx(0.3 / np.sqrt(18))
    assert e["virial"].mae == pytest.approx(1 / 3)
    assert e["virial"].rmse == pytest.approx(np.sqrt(1 / 3))
    assert e["virial_per_atom"].mae == pytest.approx((1 / 2 + 1 / 4) / 6)


def test_stress_is_the_virial_over_the_volume() -> None:
    cells = np.array([2.0 * np.eye(3), 4.0 * np.eye(3)])
    made = labelled([2, 4])
    periodic = replace(made, frames=replace(made.frames, cell=cells, pbc=np.ones((2, 3), dtype=bool)))
    assert made.virial is not None
    found = Comparison(periodic, {"virial": made.virial + np.array([8.0, -64.0])[:, None, None]})
    np.testing.assert_allclose(found.pairs["stress"][0], -made.virial / np.array([8.0, 64.0])[:, None, None])
    assert found.errors["stress"].mae == pytest.approx(1.0)
    assert "stress" not in Comparison(made, {"virial": made.virial}).pairs


def test_energies_of_atoms() -> None:
    made = labelled([2, 3])
    exact = Harmonic().evaluate(made.frames).atom_energy
    found = compare(Harmonic(), replace(made, atom_energy=exact - 0.25))
    assert found.errors["atom_energy"].n == 5
    assert found.errors["atom_energy"].mae == pytest.approx(0.25)
    report.check_atomic([found])
    with pytest.raises(DataError, match=r"made has no labels of single atoms \(atom_ener\.npy or atomic_ener\.npy\)"):
        report.check_atomic([compare(Harmonic(), made)])


def test_forces_count_by_their_weight() -> None:
    made = replace(labelled([2]), atom_pref=np.array([3.0, 1.0]))
    assert made.forces is not None
    found = Comparison(made, {"forces": made.forces + np.array([[0.1], [0.5]])}).errors["force_weighted"]
    assert found.n == 12
    assert found.mae == pytest.approx((3 * 0.1 + 0.5) / 4)
    assert found.rmse == pytest.approx(np.sqrt((3 * 0.01 + 0.25) / 4))
    ignored = replace(made, atom_pref=np.zeros(2))
    assert Comparison(ignored, {"forces": made.forces + 1.0}).errors["force_weighted"].rmse == 0.0


@dataclass
class Polar:
    """Every B has the polarizability of the unit matrix, every A none."""

    species: tuple[str, ...] = ("A", "B")
    kind: str = "polar"
    selected: tuple[int, ...] = (1,)

    def evaluate(self, frames: Frames) -> TensorValues:
        atoms = frames.types[:, None, None] * np.eye(3)
        total = np.zeros((frames.n_frames, 3, 3))
        np.add.at(total, frames.frame_idx, atoms)
        return TensorValues(total, atoms)


def test_tensors_count_where_they_are_carried() -> None:
    made = labelled([2, 4, 5], forces=False, virial=False)  # one, two and two of B
    atoms = made.frames.types[:, None, None] * np.eye(3)
    made = replace(
        made, energy=None, polar=np.array([1, 2, 2])[:, None, None] * np.eye(3) + 1.0, atom_polar=atoms - 0.5
    )
    found = compare(Polar(), made)
    assert set(found.errors) == {"polar", "polar_per_atom", "atom_polar"}
    assert found.errors["polar"].mae == pytest.approx(1.0)
    assert found.errors["polar_per_atom"].mae == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found.errors["atom_polar"].n == 5 * 9
    assert found.errors["atom_polar"].rmse == pytest.approx(0.5)
    report.check_atomic([found])


def test_what_cannot_be_compared() -> None:
    with pytest.raises(
        DataError, match="made has energy, forces, virial, but the model predicts polar, atom_polar; there"
    ):
        compare(Polar(), labelled([2, 4]))


class Divided(Harmonic):
    """Two members whose forces lie as far above as below those of the harmonic model."""

    def evaluate(self, frames: Frames) -> ForceResult:
        mean = super().evaluate(frames)
        forces = np.stack([mean.forces + 0.25, mean.forces - 0.25])
        twice = CommitteeResult(np.stack([mean.energy] * 2), forces, np.stack([mean.virial] * 2))
        return replace(mean, committee=twice)


@pytest.mark.parametrize("batch", [None, 1])
def test_members_are_held_against_their_mean(batch: int | None) -> None:
    found = compare(Divided(), labelled([2, 3, 4], forces=False), batch)
    assert found.errors["force_members"].n == 2 * 27
    assert found.errors["force_members"].rmse == pytest.approx(0.25)
    assert as_dict([found])["overall"]["force_members"]["unit"] == "eV/Å"


def test_only_labels_that_are_there() -> None:
    found = compare(Harmonic(), labelled([2, 3], forces=False, virial=False))
    assert set(found.errors) == {"energy", "energy_per_atom"}


@pytest.mark.parametrize(("batch", "expected"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_batches_give_the_same(batch: int | None, expected: list[int]) -> None:
    model, made, seen = Harmonic(), labelled([2, 5, 1, 3, 2]), []
    found = compare(model, made, batch, seen.append)
    assert model.batches == seen == expected
    exact = Harmonic().evaluate(made.frames)
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(found.predicted[name], getattr(exact, name))


def test_batches_by_atoms() -> None:
    model = Harmonic()
    compare(model, labelled([400, 400, 400, 2000, 24, 1000, 1]))
    assert model.batches == [2, 1, 1, 2, 1]


def test_overall_weighs_every_number_the_same() -> None:
    a, b = labelled([2] * 3), labelled([4], virial=False)
    found = [
        Comparison(a, {**a.labels, "energy": a.energy + 1.0}),
        Comparison(b, {**b.labels, "energy": b.energy + 5.0}),
    ]
    total = overall(found)
    assert total["energy"].mae == pytest.approx((3 * 1.0 + 5.0) / 4)
    assert total["energy"].rmse == pytest.approx(np.sqrt((3 * 1.0 + 25.0) / 4))
    assert total["virial"] == found[0].errors["virial"]


def test_sum_of_measures_is_the_measure_of_all() -> None:
    x = np.random.default_rng(0).normal(size=(7, 3))
    whole, parts = ErrorMeasure.of(x), ErrorMeasure.of(x[:2]) + ErrorMeasure.of(x[2:])
    assert (parts.n, parts.mae, parts.rmse) == pytest.approx((whole.n, whole.mae, whole.rmse), rel=1e-15)


def test_refused_frame_is_named() -> None:
    with pytest.raises(StructureError, match="made, frames 0 to 1: atoms 0 and 1 overlap"):
        compare(Harmonic(refuses=True), labelled([2, 2]))


def test_plain_values() -> None:
    found = as_dict([compare(Harmonic(), labelled([2, 3], "first")), compare(Harmonic(), labelled([2], "second"))])
    assert json.loads(json.dumps(found)) == found
    assert [(s["name"], s["n_frames"], s["n_atoms"]) for s in found["systems"]] == [("first", 2, 5), ("second", 1, 2)]
    assert found["overall"]["force"] == {"mae": 0.0, "rmse": 0.0, "n": 21, "unit": "eV/Å"}


@pytest.mark.parametrize(("n_systems", "note"), [(1, "mean of the reference:\n−156"), (2, "of each of 2 systems")])
def test_the_parity_plot_says_what_was_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_systems: int, note: str
) -> None:
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots(1, 3)
    monkeypatch.setattr(report, "panels", lambda *_: contextlib.nullcontext([list(axes)]))
    made = labelled([4] * 3)
    shifted = replace(made, energy=made.energy - 156.0 * 4 - made.energy.mean())
    plot_parity([Comparison(shifted, shifted.labels)] * n_systems, tmp_path / "parity.png")
    assert axes[0].get_xlabel() == "reference − mean (meV/atom)"
    assert axes[0].get_ylabel() == "predicted − mean (meV/atom)"
    assert note in axes[0].texts[-1].get_text()
    assert axes[1].get_xlabel() == "reference (eV/Å)"


@pytest.mark.parametrize(("n_frames", "virial"), [(1, False), (5, True), (200, True)])
def test_parity_plot(tmp_path: Path, n_frames: int, virial: bool) -> None:
    pytest.importorskip("matplotlib")
    made = labelled([5] * n_frames, virial=virial)
    noise = np.random.default_rng(0).normal(size=(5 * n_frames, 3))
    predicted = {**made.labels, "energy": made.energy + 0.1, "forces": made.forces + noise}
    plot_parity([Comparison(made, predicted)], tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
