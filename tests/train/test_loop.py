import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dpserver
from dpserver.errors import ConfigError, DataError, ModelFileError
from dpserver.models import checkpoint
from dpserver.train.config import load_input
from dpserver.train.loop import StepReport, Trainer, checkpoints
from tests.train import teacher


def trainer(folder: Path, restart: Path | None = None, **training) -> Trainer:
    path = folder / "input.json" if (folder / "input.json").exists() else teacher.write_input(folder, **training)
    return Trainer(load_input(path), folder, restart)


def choose(folder: Path, **options: str) -> None:
    """Write an input with our own section."""
    values = json.loads(teacher.write_input(folder).read_text())
    (folder / "input.json").write_text(json.dumps({**values, "dpserver": options}))


def weights(t: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.potential.parameters()])


@pytest.mark.parametrize("model", [teacher.MODEL, teacher.LOC_FRAME], ids=["se_e2_a", "loc_frame"])
def test_training_learns(tmp_path, model):
    teacher.write_input(tmp_path, model, numb_steps=150)
    t = trainer(tmp_path)
    before = t.validate(whole=True)
    assert t.run()
    after = t.validate(whole=True)
    assert after["f"] < 0.5 * before["f"]
    assert t.step == 150


def test_reports_come_with_errors_at_the_steps_of_the_curve(tmp_path):
    reports: list[StepReport] = []
    trainer(tmp_path).run(reports.append)
    assert [r.step for r in reports] == list(range(1, 31))
    assert [r.step for r in reports if r.train] == [1, 10, 20, 30]
    assert all(set(r.validation) == {"total", "e", "f", "v"} for r in reports if r.train)
    assert reports[0].lr == pytest.approx(3e-3)
    assert reports[-1].lr < 1e-4


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_restart_continues_to_the_same_numbers(tmp_path, optimizer):
    choose(tmp_path, optimizer=optimizer)
    whole = trainer(tmp_path)
    lines: list[StepReport] = []
    whole.run(lines.append)
    interrupted = trainer(tmp_path)
    assert not interrupted.run(should_stop=lambda: interrupted.step == 13)
    again = trainer(tmp_path, tmp_path / "model.ckpt-13.pt")
    rest: list[StepReport] = []
    assert again.step == 13
    assert again.run(rest.append)
    assert (weights(again) == weights(whole)).all()
    assert rest == lines[13:]


def test_the_model_file_evaluates_as_the_trained_potential(tmp_path):
    t = trainer(tmp_path)
    t.run()
    t.save_model(tmp_path / "w.pt")
    loaded = dpserver.load(tmp_path / "w.pt", device="cpu")
    frames = t.valid_systems[0].data.frames
    ours, theirs = loaded.reference(frames), t.potential.evaluate(frames)
    assert (ours.energy == theirs.energy).all()
    assert (ours.forces == theirs.forces).all()
    assert loaded.template == ("O", "H", "H") * 8
    assert np.isfinite(loaded.min_distance).all()
    card = torch.load(tmp_path / "w.pt", weights_only=True)["training"]
    assert card["validation"] == pytest.approx({k: v for k, v in t.validate(whole=True).items() if k != "total"})


def test_a_checkpoint_is_a_model_file_too(tmp_path):
    t = trainer(tmp_path)
    t.run(should_stop=lambda: t.step == 5)
    frames = t.valid_systems[0].data.frames
    loaded = dpserver.load(tmp_path / "model.ckpt-5.pt", device="cpu")
    assert (loaded.reference(frames).forces == t.potential.evaluate(frames).forces).all()


def test_old_checkpoints_are_dropped(tmp_path):
    trainer(tmp_path, save_freq=5, max_ckpt_keep=2).run()
    assert [p.name for p in checkpoints(tmp_path / "model.ckpt")] == ["model.ckpt-25.pt", "model.ckpt-30.pt"]


def test_the_precision_of_the_input_is_that_of_the_weights(tmp_path):
    choose(tmp_path, precision="mixed")
    t = trainer(tmp_path)
    t.run(should_stop=lambda: t.step == 2)
    assert weights(t).dtype == torch.float32
    assert t.potential.descriptor.davg.dtype == torch.float64


def test_a_finished_model_is_no_checkpoint(tmp_path):
    trainer(tmp_path).save_model(tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match=r"w\.pt is a finished model"):
        trainer(tmp_path, tmp_path / "w.pt")
    members = [checkpoint.read(tmp_path / "w.pt")]
    checkpoint.write(tmp_path / "two.pt", {"format": "dpserver", "version": 2, "members": members})
    with pytest.raises(ModelFileError, match=r"two\.pt is a finished model"):
        trainer(tmp_path, tmp_path / "two.pt")


def test_restart_needs_the_same_model(tmp_path):
    path = trainer(tmp_path).save_checkpoint()
    values = json.loads((tmp_path / "input.json").read_text())
    values["model"]["fitting_net"]["neuron"] = [11, 11]
    (tmp_path / "input.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"model\.fitting_net of the input is not what the checkpoint"):
        trainer(tmp_path, path)


def test_restart_needs_the_same_optimizer(tmp_path):
    path = trainer(tmp_path).save_checkpoint()
    values = json.loads((tmp_path / "input.json").read_text())
    (tmp_path / "input.json").write_text(json.dumps({**values, "dpserver": {"optimizer": "soap"}}))
    with pytest.raises(ConfigError, match=r"optimizer is soap, but the checkpoint .* was trained with adam"):
        trainer(tmp_path, path)


def test_restart_needs_the_same_data(tmp_path):
    path = trainer(tmp_path).save_checkpoint()
    energies = tmp_path / "train" / "set.000" / "energy.npy"
    np.save(energies, np.load(energies) + 1)
    with pytest.raises(DataError, match="training data is not that of the checkpoint"):
        trainer(tmp_path, path)


def test_a_diverging_training_says_where(tmp_path):
    t = trainer(tmp_path)
    with torch.no_grad():
        t.potential.fitting[0][0].bias.fill_(torch.nan)
    with pytest.raises(DataError, match=r"the loss is not finite at step 0 \(.*train, frames"):
        t.run()
