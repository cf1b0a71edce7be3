"""Training on a CUDA device that is not there; see `tests/pretend_cuda.py` for what this can show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpserver.models import checkpoint
from dpserver.train import evaluator
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer
from tests.pretend_cuda import Claimed, pretended
from tests.train import teacher

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")

CHARGES = {**teacher.MODEL, "electrostatics": {"charges": {"O": -0.8, "H": 0.4}, "trainable": True}}


def write(folder: Path, model: dict[str, Any], **options: str) -> Path:
    path = teacher.write_input(folder, model, numb_steps=3, save_freq=2, disp_freq=3, enable_ema=True, ema_decay=0.9)
    path.write_text(json.dumps({**json.loads(path.read_text()), "dpserver": options}))
    return path


def state(trainer: Trainer) -> list[torch.Tensor]:
    return [t.detach().cpu() for t in trainer.potential.state_dict().values()]


@pytest.mark.parametrize(
    ("model", "optimizer", "precision"),
    [
        (teacher.LOC_FRAME, "soap", "mixed"),
        (CHARGES, "adam", "double"),
    ],
    ids=["loc_frame by SOAP", "charges by Adam"],
)
def test_it_takes_the_steps_of_the_host_and_continues(
    model: dict[str, Any], optimizer: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, model, optimizer=optimizer, precision=precision, device="cuda:1")
    with pretended(2):
        there = Trainer(load_input(path), tmp_path)
        assert there.run()
        assert all(isinstance(p, Claimed) and p.index == 1 for p in there.potential.parameters())
        restart = tmp_path / "model.ckpt-2.pt"
        again = Trainer(load_input(path), tmp_path, restart)
        assert again.run()
        there.save_model(tmp_path / "w.pt")
        trained, continued = state(there), state(again)
    assert all(a.equal(b) for a, b in zip(trained, continued, strict=True))
    kept = checkpoint.restore_model(checkpoint.read(tmp_path / "w.pt")).state_dict().values()
    assert all(a.equal(b) for a, b in zip(trained, kept, strict=True))

    monkeypatch.setattr(evaluator, "reason_against", lambda _: "a device would not use polynomials")
    options = {"optimizer": optimizer, "precision": precision, "device": "cpu"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "dpserver": options}))
    here = Trainer(load_input(path), tmp_path, restart)
    assert here.run()
    assert all(a.equal(b) for a, b in zip(trained, state(here), strict=True))
