import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer
from dpserver.train.pretrained import Pretrained, completed
from tests.train import teacher

KNOWN = parse(
    ModelConfig, {**teacher.MODEL, "descriptor": {**teacher.MODEL["descriptor"], "sel": [60, 120]}}
).model_dump(mode="json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose energies are 2 eV per oxygen off, and that has seen closer atoms than the data have."""
    potential = teacher.teacher()
    potential.energy_bias += potential.energy_bias.new_tensor([2.0, 0.0])
    potential.min_distance[:] = [[0.5, 5.0], [5.0, np.inf]]
    checkpoint.save(tmp_path / "old.pt", potential, {"step": 7, "date": "2026-01-01"})
    return tmp_path / "old.pt"


def start(folder: Path, path: Path, given: Any = None, **options: Any) -> Trainer:
    """A training with the section `model` as given."""
    values = json.loads(teacher.write_input(folder, numb_steps=2).read_text())
    values["model"] = {"type_map": ["O", "H"]} if given is None else given
    (folder / "input.json").write_text(json.dumps(values))
    pretrained = Pretrained.read(path, **options)
    config = load_input(folder / "input.json", pretrained.model, str(path))
    return Trainer(config, folder, pretrained=pretrained)


def test_finetuning_starts_from_the_weights_and_fits_the_energies(tmp_path, model):
    t = start(tmp_path, model)
    for mine, theirs in zip(t.potential.parameters(), teacher.teacher().parameters(), strict=True):
        assert (mine == theirs).all()
    data = t.systems[0].data
    # one composition: the energies of the species follow only together, those of the structures exactly
    assert t.potential.evaluate(data.frames).energy == pytest.approx(data.energy, abs=1e-7)
    assert t.bias_change is not None
    assert t.bias_change.error_before == pytest.approx(2 * 8 / 24)
    assert (t.potential.descriptor.davg == teacher.teacher().descriptor.davg).all()
    assert t.run()


def test_distances_are_those_of_both_data_sets(tmp_path, model):
    seen = start(tmp_path, model).potential.min_distance
    assert seen[0, 0] == 0.5
    assert 0.5 < seen[0, 1] < 2.0
    assert np.isfinite(seen[1, 1])


def test_the_card_says_where_it_comes_from_also_after_a_restart(tmp_path, model):
    t = start(tmp_path, model)
    origin = t.card()["started_from"]
    assert origin["file"] == "old.pt"
    assert origin["date"] == "2026-01-01"
    path = t.save_checkpoint()
    again = Trainer(load_input(tmp_path / "input.json", checkpoint.read(path)["config"]["model"]), tmp_path, path)
    assert again.card()["started_from"] == origin


def test_a_model_can_be_started_from_as_it_is(tmp_path, model):
    t = start(tmp_path, model, refits_bias=False)
    assert t.bias_change is None
    assert t.potential.energy_bias.numpy() == pytest.approx(teacher.BIAS + np.array([2.0, 0.0]))


def test_another_order_of_the_species_renumbers_data_without_names(tmp_path, model):
    teacher.write_input(tmp_path)
    folder = tmp_path / "train"
    types = np.loadtxt(folder / "type.raw", dtype=int)
    values = json.loads((tmp_path / "input.json").read_text())
    values["model"] = {"type_map": ["H", "O"]}
    values["training"]["numb_steps"] = 2
    (tmp_path / "input.json").write_text(json.dumps(values))
    for name in ("train", "valid"):
        (tmp_path / name / "type_map.raw").unlink()
        (tmp_path / name / "type.raw").write_text("\n".join(str(1 - t) for t in types))
    pretrained = Pretrained.read(model)
    trainer = Trainer(load_input(tmp_path / "input.json", pretrained.model), tmp_path, pretrained=pretrained)
    assert trainer.potential.species == ("O", "H")
    assert (trainer.systems[0].data.frames.types[: len(types)] == types).all()
    data = trainer.systems[0].data
    assert trainer.potential.evaluate(data.frames).energy == pytest.approx(data.energy, abs=1e-7)


def test_a_committee_is_no_start(tmp_path, model):
    one = checkpoint.read(model)
    checkpoint.write(tmp_path / "two.pt", checkpoint.committee_of([one, one]))
    with pytest.raises(ConfigError, match=r"two\.pt is a committee of 2 models; start from the file of one"):
        Pretrained.read(tmp_path / "two.pt")


def test_what_the_input_leaves_out_is_that_of_the_model():
    assert completed({"type_map": ["O", "H"]}, KNOWN, "m") == KNOWN
    assert completed(None, KNOWN, "m") == KNOWN
    assert completed({"type_map": ["H"]}, KNOWN, "m")["type_map"] == ["O", "H"]
    assert completed({"data_stat_nbatch": 3}, KNOWN, "m")["data_stat_nbatch"] == 3


@pytest.mark.parametrize(
    "given",
    [
        teacher.MODEL,
        {**teacher.MODEL, "descriptor": {**teacher.MODEL["descriptor"], "sel": "auto"}},
        {"descriptor": {"type": "se_a", "neuron": [4, 8], "seed": 5, "precision": "float32"}},
        {"type_map": ["H", "O"], "descriptor": {"type": "se_e2_a", "sel": [1, 2], "axis_neuron": 3}},
    ],
)
def test_the_network_may_be_written_out_as_it_is(given):
    merged = parse(ModelConfig, completed(given, KNOWN, "m"), "model")
    assert merged.descriptor.sel == (60, 120)
    assert merged.descriptor.neuron == (4, 8)


def test_layers_can_be_frozen_for_it():
    given = {"descriptor": {"type": "se_e2_a", "trainable": False}}
    assert completed(given, KNOWN, "m")["descriptor"]["trainable"] is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"descriptor": {"type": "se_e2_a", "neuron": [4, 9], "rcut": 5.0}},
            "model.descriptor.rcut is 5.0, but 4.0 in the model; model.descriptor.neuron is [4, 9], but [4, 8] in the "
            "model: leave model.descriptor out to take that of m, or give --use-pretrain-script",
        ),
        ({"descriptor": {"type": "se_e2_r"}}, "model.descriptor.type is se_e2_r, but se_e2_a in the model"),
        ({"fitting_net": {"neuron": [10]}}, "model.fitting_net.neuron is [10], but [10, 10] in the model"),
        ({"type_map": ["O", "C"]}, "model.type_map: m does not know C, only O, H; leave them out of type_map and"),
        ({"descriptor": {"type": "se_e2_a", "neurons": [4]}}, "model.descriptor.neurons: unknown key; did you mean"),
    ],
)
def test_another_network_is_refused(given, expected):
    with pytest.raises(ConfigError) as error:
        completed(given, KNOWN, "m")
    assert str(error.value).startswith(expected)


def test_the_network_of_the_model_goes_before_that_of_the_input_on_demand():
    given = {"descriptor": {"type": "se_e2_r"}, "fitting_net": {"neuron": [3]}}
    assert completed(given, KNOWN, "m", replaces=True) == KNOWN


def test_another_model_is_refused_by_the_training_too(tmp_path, model):
    config = load_input(teacher.write_input(tmp_path, {**teacher.MODEL, "fitting_net": {"neuron": [3]}}))
    with pytest.raises(ConfigError, match=r"model\.fitting_net\.neuron is \[3\], but \[10, 10\] in the model: this is"):
        Trainer(config, tmp_path, pretrained=Pretrained.read(model))


def test_models_of_deepmd_kit_are_starts_too(tmp_path, shared_dir):
    files = sorted(shared_dir.glob("reference/water_tf/model.dp"))
    if not files:
        pytest.skip("no model of DeePMD-kit's among the reference data")
    pytest.importorskip("h5py")
    pretrained = Pretrained.read(files[0])
    model = checkpoint.restore(pretrained.values)
    assert isinstance(model, Potential)
    assert pretrained.origin["imported"].startswith("DeePMD-kit")
    assert torch.isfinite(model.energy_bias).all()
    assert completed({}, pretrained.model, "m") == pretrained.model
