"""Models beside the one of energies: what they are shown, what comes of it, and what i-PI is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dpserver.engine import Accompanied, Assigner, Engine, Order, Request
from dpserver.engine.extras import encode_extras
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames, TensorValues
from dpserver.ipi import Forces, Structures
from dpserver.units import BOHR
from tests import structures
from tests.doubles import PairModel
from tests.engine.committees import PairCommittee

CHARGES = {"O": -2.0, "H": 1.0}


class PointCharges:
    """μ = Σ q x, whose Born charges are q δ_ab; α = Σ q² x ⊗ x."""

    rcut = 1.0

    def __init__(self, kind: str = "dipole", species: tuple[str, ...] = ("H", "O")) -> None:
        self.kind, self.species = kind, species

    def evaluate(self, frames: Frames, *, has_born_charges: bool = False) -> TensorValues:
        q = np.array([CHARGES[self.species[t]] for t in frames.types])
        x = frames.positions
        atoms = q[:, None] * x if self.kind == "dipole" else (q**2)[:, None, None] * x[:, :, None] * x[:, None, :]
        total = np.zeros((frames.n_frames, *atoms.shape[1:]))
        np.add.at(total, frames.frame_idx, atoms)
        return TensorValues(total, atoms, q[:, None, None] * np.eye(3) if has_born_charges else None)


def dipole_of(frame: Frames) -> np.ndarray:
    """With the types of the model of energies: O is 0, H is 1."""
    return np.where(frame.types == 0, -2.0, 1.0) @ frame.positions


def every() -> list[Frames]:
    return [structures.cubic(seed) for seed in (1, 2, 3)]


def test_types_are_translated_and_forces_stay() -> None:
    frames = Frames.concatenate([*every(), structures.cluster()])
    model = Accompanied(PairModel(), PointCharges(), PointCharges("polar"), has_born_charges=True)
    found, alone = model.evaluate(frames), PairModel().evaluate(frames)
    np.testing.assert_array_equal(found.forces, alone.forces)
    np.testing.assert_array_equal(found.energy, alone.energy)
    assert found.responses is not None
    np.testing.assert_allclose(found.responses.dipole, [dipole_of(f) for f in frames], rtol=1e-12)
    q = np.where(frames.types == 0, -2.0, 1.0)
    np.testing.assert_array_equal(found.responses.born_charges, q[:, None, None] * np.eye(3))
    assert (model.species, model.rcut, model.template) == (("O", "H"), 3.0, None)


def test_a_part_has_its_own_responses() -> None:
    frames = Frames.concatenate(every())
    found = Accompanied(PairModel(), PointCharges(), has_born_charges=True).evaluate(frames)
    part = found.part(slice(1, 3))
    assert part.responses is not None
    np.testing.assert_allclose(part.responses.dipole, [dipole_of(f) for f in every()[1:]], rtol=1e-12)
    assert part.responses.polar is None
    assert part.responses.born_charges is not None
    assert len(part.responses.born_charges) == 48


def test_extras_in_atomic_units() -> None:
    frames = every()[:2]
    model = Accompanied(PairModel(), PointCharges(), PointCharges("polar"), has_born_charges=True)
    texts = encode_extras(model.evaluate(Frames.concatenate(frames)))
    for frame, text in zip(frames, texts, strict=True):
        found = json.loads(text)
        assert set(found) == {"dipole", "polarizability", "BEC"}
        np.testing.assert_allclose(found["dipole"], dipole_of(frame) / BOHR, rtol=1e-12)
        q = np.where(frame.types == 0, -2.0, 1.0)
        alpha = np.einsum("n,na,nb->ab", q**2, frame.positions, frame.positions)
        np.testing.assert_allclose(found["polarizability"], alpha / BOHR**3, rtol=1e-12)
        born = np.array(found["BEC"])
        assert born.shape == (3 * 24, 3)
        np.testing.assert_allclose(born.reshape(24, 3, 3), q[:, None, None] * np.eye(3), atol=1e-12)


def test_a_committee_has_its_own_entries_too() -> None:
    (text,) = encode_extras(Accompanied(PairCommittee(), PointCharges()).evaluate(structures.cubic()))
    assert set(json.loads(text)) == {
        "committee_pot", "committee_force", "committee_virial", "max_force_deviation", "dipole",
    }  # fmt: skip


def test_every_structure_of_a_batch_in_pieces_has_its_extras() -> None:
    """The engine cuts a batch where it is too large, and fills i-PI's short batches up."""
    model = Accompanied(PairModel(), PointCharges(), has_born_charges=True)
    frames = [*every(), every()[-1]]  # the last one is i-PI's padding
    sent = Structures(np.stack([f.positions for f in frames]), np.concatenate([f.cell for f in frames]))
    order = Order(("O", "H", "H"), "--species")
    request = Request(sent, Assigner(model, order, "unix:x"), has_extras=True)
    (answer,) = Engine(model, max_atoms=24).answer([request])
    assert isinstance(answer, Forces)
    found = [json.loads(text) for text in answer.extras]
    np.testing.assert_allclose([f["dipole"] for f in found], [dipole_of(f) / BOHR for f in frames], rtol=1e-12)
    assert {len(f["BEC"]) for f in found} == {72}


def test_who_wants_no_extras_gets_none() -> None:
    model = Accompanied(PairModel(), PointCharges())
    frame = every()[0]
    request = Request(
        Structures(frame.positions[None], frame.cell), Assigner(model, Order(("O", "H", "H"), ""), "unix:x")
    )
    (answer,) = Engine(model).answer([request])
    assert isinstance(answer, Forces)
    assert answer.extras == []


@pytest.mark.parametrize("name", ["dipole", "polar", "born_charges"])
def test_a_number_that_is_not_finite_is_found(name: str) -> None:
    model = Accompanied(PairModel(), PointCharges(), PointCharges("polar"), has_born_charges=True)
    result = model.evaluate(Frames.concatenate(every()))
    assert result.is_finite().all()
    assert result.responses is not None
    values = getattr(result.responses, name).copy()
    values[-1].flat[0] = np.nan
    broken = replace(result, responses=replace(result.responses, **{name: values}))
    np.testing.assert_array_equal(broken.is_finite(), [True, True, False])


def test_species_that_another_model_does_not_know_are_refused() -> None:
    model = Accompanied(PairModel(), PointCharges(species=("O",)))
    with pytest.raises(StructureError, match="the model of the kind dipole knows O, not H"):
        model.evaluate(structures.cubic())
    assert model.evaluate(structures.atom(0)).responses is not None


def test_models_of_the_wrong_kind() -> None:
    with pytest.raises(ConfigError, match="the model given for dipole is one of the kind polar"):
        Accompanied(PairModel(), PointCharges("polar"))
    with pytest.raises(ConfigError, match="Born charges are the derivative of a dipole; they need a model of dipoles"):
        Accompanied(PairModel(), polar=PointCharges("polar"), has_born_charges=True)
