"""Models that were trained here, evaluated by DeePMD-kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h5py")
pytest.importorskip("google.protobuf")

from dpserver.models import checkpoint, deepmd
from dpserver.models.potential import Potential
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer
from tests.peers.agreement import assert_agrees, frames
from tests.peers.conftest import DeePMDKit
from tests.train import teacher

pytestmark = pytest.mark.peer

TRAINED: dict[str, dict[str, Any]] = {
    "se_e2_a": {},
    "se_e2_r": {"type": "se_e2_r", "axis_neuron": None},
}
"""Changes of the descriptor of the teacher's input; a new descriptor is a new line here."""


@pytest.mark.parametrize("suffix", [".pth", ".pb"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_model_trained_here_gives_its_numbers_there(
    deepmd_kit: DeePMDKit, tmp_path: Path, name: str, suffix: str
) -> None:
    descriptor = {**teacher.MODEL["descriptor"], **TRAINED[name]}
    model = {**teacher.MODEL, "descriptor": {k: v for k, v in descriptor.items() if v is not None}}
    trainer = Trainer(load_input(teacher.write_input(tmp_path, model, numb_steps=5)), tmp_path)
    assert trainer.run()
    checkpoint.save(tmp_path / "w.pt", trainer.potential)
    potential = checkpoint.load(tmp_path / "w.pt", device="cpu")
    assert isinstance(potential, Potential)
    deepmd.save(tmp_path / "w.dp", potential)
    there = deepmd_kit.convert(tmp_path / "w.dp", tmp_path / f"w{suffix}")
    assert_agrees(potential.reference(frames()), deepmd_kit.evaluate(there, frames()))
