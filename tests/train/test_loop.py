import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dpserver
from dpserver.errors import ConfigError, DataError, ModelFileError
from dpserver.models import checkpoint
from dpserver.models.kept_tables import KeptTables, fingerprint
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


def test_a_length_in_epochs_is_that_of_the_batches(tmp_path):
    t = trainer(tmp_path, numb_steps=None, numb_epoch=1.5)  # 6 frames in batches of 2
    assert t.numb_steps == 5
    assert t.lr(0) == pytest.approx(3e-3)
    assert t.card()["numb_steps"] == 5


def test_the_mean_of_the_errors_since_the_last_line(tmp_path):
    every, averaged = [], []
    trainer(tmp_path, numb_steps=4, disp_freq=1).run(every.append)
    values = json.loads((tmp_path / "input.json").read_text())
    values["training"] |= {"disp_freq": 4, "disp_avg": True}
    (tmp_path / "input.json").write_text(json.dumps(values))
    trainer(tmp_path).run(averaged.append)
    first, last = (r for r in averaged if r.train)
    assert first.train == every[0].train
    assert last.train["f"] == pytest.approx(np.mean([r.train["f"] for r in every[1:]]))


def test_long_gradients_are_shortened(tmp_path):
    t = trainer(tmp_path, gradient_max_norm=1e-3)
    t.run(should_stop=lambda: t.step == 1)
    gradients = [p.grad.flatten() for p in t.potential.parameters() if p.grad is not None]
    assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_energies_are_fitted_once_more_at_the_end(tmp_path):
    t = trainer(tmp_path, numb_steps=2, change_bias_after_training=True)
    t.run()
    assert t.bias_change is not None
    data = t.systems[0].data
    errors = data.energy - t.potential.evaluate(data.frames).energy
    assert errors.sum() == pytest.approx(0, abs=1e-8)  # all frames have the same composition
    stored = checkpoint.read(tmp_path / "model.ckpt-2.pt")
    assert (stored["state"]["energy_bias"] == t.potential.energy_bias).all()


def test_layers_that_are_not_to_be_trained_stay(tmp_path):
    model = {**teacher.MODEL, "descriptor": {**teacher.MODEL["descriptor"], "trainable": False}}
    teacher.write_input(tmp_path, model, numb_steps=2)
    t = trainer(tmp_path)
    before = [p.clone() for p in t.potential.parameters()]
    t.run()
    is_changed = [not bool((a == b).all()) for a, b in zip(before, t.potential.parameters(), strict=True)]
    n_fixed = len(list(t.potential.descriptor.parameters()))
    assert not any(is_changed[:n_fixed])
    assert all(is_changed[n_fixed:])
    values = json.loads((tmp_path / "input.json").read_text())
    values["model"]["fitting_net"]["trainable"] = False
    (tmp_path / "input.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="leave nothing to train"):
        trainer(tmp_path)


def test_adamw_takes_off_a_part_of_the_weights(tmp_path):
    values = json.loads(teacher.write_input(tmp_path, numb_steps=1).read_text())
    found = {}
    for decay in (0.0, 0.5):
        optimizer = {"type": "AdamW", "weight_decay": decay, "adam_beta1": 0.8}
        (tmp_path / "input.json").write_text(json.dumps({**values, "optimizer": optimizer}))
        t = trainer(tmp_path)
        before = weights(t)
        t.run()
        found[decay] = weights(t)
        assert t.card()["optimizer"] == "adamw"
    assert (found[0.0] - found[0.5]).numpy() == pytest.approx(3e-3 * 0.5 * before.numpy(), abs=1e-12)


def test_checkpoints_go_to_a_folder_of_their_own(tmp_path):
    trainer(tmp_path, numb_steps=2, save_dir="kept").run()
    assert (tmp_path / "kept" / "model.ckpt-2.pt").exists()


def test_the_mean_of_the_weights_is_written_beside_them(tmp_path):
    options = {"enable_ema": True, "ema_decay": 0.75, "ema_ckpt_keep": 1, "save_freq": 1, "numb_steps": 3}
    t = trainer(tmp_path, **options)
    expected, seen = weights(t).clone(), []
    while t.step < 3:
        t._take_step(t.lr(t.step))
        seen.append(weights(t).clone())
        expected = 0.75 * expected + 0.25 * seen[-1]
        t.save_checkpoint()
    assert [p.name for p in checkpoints(tmp_path / "model_ema.ckpt")] == ["model_ema.ckpt-3.pt"]
    mean = dpserver.load(tmp_path / "model_ema.ckpt-3.pt", device="cpu")
    found = torch.cat([p.flatten() for p in mean.parameters()])
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-12)
    assert (found != seen[-1]).any()
    again = trainer(tmp_path, tmp_path / "model.ckpt-2.pt")
    again._take_step(again.lr(2))
    assert again.average is not None
    assert (torch.cat([w.flatten() for w in again.average.weights.values()]) == found).all()


def test_the_mean_of_the_weights_comes_without_tables_of_others(tmp_path):
    t = trainer(tmp_path, enable_ema=True, numb_steps=1)
    t.potential.tables = KeptTables(fingerprint(t.potential), 1e-10, ())
    assert "tables" in checkpoint.read(t.save_checkpoint())
    (mean,) = checkpoints(tmp_path / "model_ema.ckpt")
    assert "tables" not in checkpoint.read(mean)


def test_training_and_validation_share_one_room(tmp_path):
    t = trainer(tmp_path, numb_steps=1)
    assert t.valid_systems
    assert len({id(s.room) for s in (*t.systems, *t.valid_systems)}) == 1
    before = t.systems[0].room.left
    t._take_step(t.lr(0))
    assert t.systems[0].room.left < before


@pytest.mark.parametrize(("before", "after"), [("double", "mixed"), ("mixed", "double")])
def test_the_mean_of_the_weights_goes_on_in_another_precision(tmp_path, before, after):
    path = teacher.write_input(tmp_path, enable_ema=True, numb_steps=2, save_freq=1)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "dpserver": {"precision": before}}))
    trainer(tmp_path).run()
    path.write_text(json.dumps({**values, "dpserver": {"precision": after}}))
    again = trainer(tmp_path, tmp_path / "model.ckpt-1.pt")
    assert again.average is not None
    stored = checkpoint.read(tmp_path / "model.ckpt-1.pt")["resume"]["average"]
    for name, mean in again.average.weights.items():
        assert mean.dtype == dict(again.potential.named_parameters())[name].dtype
        assert (mean == stored[name].to(mean.dtype)).all()
    assert again.run()


def test_generalized_forces_need_as_many_coordinates_as_they_have(tmp_path):
    values = json.loads(teacher.write_input(tmp_path).read_text())
    for k in range(2):
        folder = tmp_path / "train" / f"set.{k:03d}"
        np.save(folder / "drdq.npy", np.ones((len(np.load(folder / "energy.npy")), 24 * 3)))
    values["loss"] = {"start_pref_gf": 1.0, "limit_pref_gf": 1.0, "numb_generalized_coord": 2}
    (tmp_path / "input.json").write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"train: drdq has 3 numbers for each atom, but loss\.numb_generalized_coord is 2"
    ):
        trainer(tmp_path)
    values["loss"]["numb_generalized_coord"] = 1
    (tmp_path / "input.json").write_text(json.dumps(values))
    t = trainer(tmp_path)
    assert t.columns == ["total", "e", "f", "gf"]
    assert "gf" in t._take_step(1e-3).rmse()


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
    with pytest.raises(
        ConfigError, match=r"model\.fitting_net\.neuron is \[11, 11\], but \[10, 10\] in the model: this is not"
    ):
        trainer(tmp_path, path)


@pytest.mark.parametrize("length", [{"numb_steps": 2}, {"numb_epoch": 0.6}])
def test_restart_of_more_steps_than_asked_for(tmp_path, length):
    t = trainer(tmp_path, numb_steps=3)
    t.run()
    values = json.loads((tmp_path / "input.json").read_text())
    del values["training"]["numb_steps"]
    (tmp_path / "input.json").write_text(json.dumps({**values, "training": {**values["training"], **length}}))
    with pytest.raises(ConfigError, match=r"model\.ckpt-3\.pt is already at step 3 of 2: nothing is left to train"):
        trainer(tmp_path, tmp_path / "model.ckpt-3.pt")


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


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        (
            {"sel": [16, 5]},
            r"model\.descriptor\.sel\[1\] is 5, but an atom of the data has \d+ neighbours of H within 4",
        ),
        ({"type": "se_atten", "sel": 5}, r"model\.descriptor\.sel is 5, but an atom of the data has \d+ neighbours"),
        (
            {"type": "hybrid", "list": [{"type": "se_e2_r", "sel": [99, 99]}, {"type": "se_e2_r", "sel": [99, 3]}]},
            r"model\.descriptor\.list\[1\]\.sel\[1\] is 3, but",
        ),
    ],
)
def test_data_with_more_neighbours_than_sel_are_refused_at_once(tmp_path, descriptor, expected):
    usual = {} if "list" in descriptor else teacher.MODEL["descriptor"]
    section = {key: value for key, value in {**usual, **descriptor}.items() if key != "type_one_side"}
    teacher.write_input(tmp_path, {**teacher.MODEL, "descriptor": section})
    with pytest.raises(DataError, match=expected):
        trainer(tmp_path)


def test_sel_of_a_training_holds_for_its_validation_too(tmp_path):
    teacher.write_input(tmp_path)
    for k in range(2):
        file = tmp_path / "valid" / f"set.{k:03d}" / "coord.npy"
        np.save(file, 0.7 * np.load(file))
        box = file.with_name("box.npy")
        np.save(box, 0.7 * np.load(box))
    t = trainer(tmp_path)
    assert t.potential.descriptor.sel[1] > 30
    assert t.validate(whole=True)


def test_a_diverging_training_says_where(tmp_path):
    t = trainer(tmp_path)
    with torch.no_grad():
        t.potential.fitting[0][0].bias.fill_(torch.nan)
    with pytest.raises(DataError, match=r"the loss is not finite at step 0 \(.*train, frames"):
        t.run()
