import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpserver.models import checkpoint as models
from dpserver.train import curve
from tests.cli.commands import exit_code, run
from tests.patience import JOB_PATIENCE
from tests.train import teacher


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, "-m", "dpserver", "train", *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=JOB_PATIENCE,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process


def test_training_leaves_a_model_checkpoints_and_a_curve(tmp_path):
    teacher.write_input(tmp_path, tensorboard=True)
    said = command(tmp_path, "input.json", "--output", "water.pt").stderr
    assert [line.split()[1] for line in said.splitlines() if line.startswith("step")] == ["1", "10", "20", "30"]
    assert (tmp_path / "water.pt").exists()
    assert (tmp_path / "model.ckpt-30.pt").exists()
    assert curve.read(tmp_path / "lcurve.out")["step"].tolist() == [1, 10, 20, 30]
    assert (tmp_path / "lcurve.png").stat().st_size > 1000
    assert list((tmp_path / "log").glob("events.*"))


def test_ctrl_c_saves_and_restart_finishes(tmp_path):
    teacher.write_input(tmp_path, numb_steps=1_000_000, save_freq=1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "dpserver", "train", "input.json"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    curve_file = tmp_path / "lcurve.out"
    assert process.stderr is not None
    while process.poll() is None and not (curve_file.exists() and len(curve_file.read_text().splitlines()) > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=JOB_PATIENCE)
    assert process.returncode == 130, stderr
    assert "continue with: dpserver train input.json -o w.pt --restart model.ckpt" in stderr
    (checkpoint,) = tmp_path.glob("model.ckpt-*.pt")
    step = int(checkpoint.stem.rpartition("-")[2])
    values = json.loads((tmp_path / "input.json").read_text())
    values["training"]["numb_steps"] = step + 3
    (tmp_path / "input.json").write_text(json.dumps(values))
    assert f"at step {step}" in command(tmp_path, "input.json", "--restart", "model.ckpt").stderr
    assert curve.read(curve_file)["step"][-1] == step + 3
    assert (tmp_path / "w.pt").exists()


def test_ctrl_c_after_the_last_step_does_not_lose_the_model(tmp_path):
    teacher.write_input(tmp_path, numb_steps=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "dpserver", "train", "input.json"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (tmp_path / "model.ckpt-1.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=JOB_PATIENCE)
    assert "model: w.pt" in stderr
    assert (tmp_path / "w.pt").exists()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_seed_can_be_given_beside_the_input(here, monkeypatch):
    teacher.write_input(here, numb_steps=2, seed=3)
    run(monkeypatch, "train", "input.json", "-o", "3.pt")
    run(monkeypatch, "train", "input.json", "-o", "4.pt", "--seed", "4")
    run(monkeypatch, "train", "input.json", "-o", "again.pt", "--seed", "3")
    files = {name: models.read(f"{name}.pt") for name in ("3", "4", "again")}
    assert [values["training"]["seed"] for values in files.values()] == [3, 4, 3]
    weight = {name: values["state"]["fitting.0.0.weight"] for name, values in files.items()}
    assert weight["3"].equal(weight["again"])
    assert not weight["3"].equal(weight["4"])


def test_finetuning_a_model_with_an_input_that_leaves_the_network_out(here, monkeypatch, capsys):
    potential = teacher.teacher()
    potential.energy_bias += 1.0
    models.save("old.pt", potential)
    values = json.loads(teacher.write_input(here, numb_steps=2).read_text())
    (here / "input.json").write_text(json.dumps({**values, "model": {"type_map": ["O", "H"]}}))
    run(monkeypatch, "train", "input.json", "--finetune", "old.pt", "-o", "new.pt")
    said = capsys.readouterr().err
    assert "starting from old.pt" in said
    assert "RMSE of the energies of 6 frames: 1e+03 →" in said
    card = models.read("new.pt")["training"]
    assert card["started_from"]["file"] == "old.pt"
    run(monkeypatch, "train", "input.json", "--init-model", "model.ckpt", "-o", "again.pt")
    assert "starting from model.ckpt-2.pt" in capsys.readouterr().err
    assert models.read("again.pt")["training"]["started_from"]["how"] == "weights as they were"


def test_the_network_of_the_model_is_taken_on_demand(here, monkeypatch, capsys):
    models.save("old.pt", teacher.teacher())
    values = json.loads(teacher.write_input(here, numb_steps=1).read_text())
    values["model"]["fitting_net"] = {"neuron": [3, 3]}
    (here / "input.json").write_text(json.dumps(values))
    assert exit_code(monkeypatch, "train", "input.json", "-t", "old.pt") == 2
    assert "or give --use-pretrain-script" in " ".join(capsys.readouterr().err.split())
    run(monkeypatch, "train", "input.json", "-t", "old.pt", "--use-pretrain-script")
    assert models.read("w.pt")["config"]["model"]["fitting_net"]["neuron"] == [10, 10]


def test_restarting_a_training_that_is_done(here, monkeypatch, capsys):
    charges = {"charges": {"O": -0.8, "H": 0.4}}
    path = teacher.write_input(here, {**teacher.MODEL, "electrostatics": charges}, numb_steps=2)
    run(monkeypatch, "train", "input.json")
    said = capsys.readouterr().err
    assert "6 frames to train on" in said
    assert "go on" not in said
    (here / "w.pt").unlink()
    values = json.loads(path.read_text())
    del values["model"]["electrostatics"]
    path.write_text(json.dumps(values))
    run(monkeypatch, "train", "input.json", "--restart", "model.ckpt")
    said = capsys.readouterr().err
    assert (
        "continuing from model.ckpt-2.pt at step 2 of 2: nothing is left to train, only the model to be written" in said
    )
    assert "the charges of model.ckpt-2.pt go on, since the input has no section model.electrostatics" in said
    assert models.read("w.pt")["config"]["model"]["electrostatics"]["charges"] == charges["charges"]
    (here / "w.pt").unlink()
    values["training"]["numb_steps"] = 1
    path.write_text(json.dumps(values))
    assert exit_code(monkeypatch, "train", "input.json", "--restart", "model.ckpt") == 2
    assert "is already at step 2 of 1: nothing is left to train" in capsys.readouterr().err
    assert not (here / "w.pt").exists()


def test_a_training_on_one_frame(here, monkeypatch, capsys):
    path = teacher.write_input(here, numb_steps=1)
    values = json.loads(path.read_text())
    shutil.rmtree(here / "train")
    teacher.write_npy(here / "train", 1, n_sets=1)
    values["training"]["training_data"]["batch_size"] = 1
    path.write_text(json.dumps(values))
    run(monkeypatch, "train", "input.json")
    assert "; 1 frame to train on, 3 to validate" in capsys.readouterr().err


def test_options_of_dp_train_that_change_nothing_here(here, monkeypatch):
    teacher.write_input(here, numb_steps=1)
    run(monkeypatch, "train", "input.json", "--skip-neighbor-stat", "-v", "2", "-m", "master")
    assert (here / "w.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.json"], "--output out.json: this is where the model goes"),
        (["-l", "train.log"], "--log-path: what is said goes to stderr; write it to a file with 2> train.log"),
        (["--force-load"], "--force-load: weights are taken over whole or not at all"),
        (["-t", "a.pt", "-r", "b"], "--restart and --finetune exclude each other"),
        (["-i", "none.pt"], "--init-model none.pt: found neither this file nor any checkpoint none.pt-N.pt"),
        (["--head", "x"], "--head names a model of the file of --finetune or --init-model"),
        (["--use-pretrain-script"], "--use-pretrain-script needs a model"),
        (["--threads", "1000000"], "the number of threads must be at most "),
    ],
)
def test_options_that_do_not_fit(here, monkeypatch, capsys, arguments, message):
    teacher.write_input(here)
    assert exit_code(monkeypatch, "train", "input.json", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"numb_stps": 3}, 2, "training.numb_stps: unknown key; did you mean training.numb_steps?"),
        ({"numb_steps": "3"}, 2, 'training.numb_steps: input should be a valid integer, got "3"'),
        ({"training_data": {"systems": "gone"}}, 4, "gone"),
        ({"training_data": None}, 2, "training.training_data: "),
        ({"seed": -1}, 2, "training.seed: must be an integer ≥ 0"),
    ],
)
def test_mistakes_in_the_input_are_named(here, monkeypatch, capsys, change, code, message):
    values = json.loads(teacher.write_input(here).read_text())
    values["training"] |= change
    (here / "input.json").write_text(json.dumps(values))
    assert exit_code(monkeypatch, "train", "input.json") == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.json"], 2, "cannot read the training input none.json"),
        (["input.json", "--restart", "gone.ckpt"], 2, "--restart gone.ckpt: found neither"),
        (["input.json", "--output", "no/such/w.pt"], 2, "--output no/such/w.pt: expected a file name"),
        (["input.json", "--seed", "4", "--restart", "x"], 2, "--seed and --restart exclude each other"),
        (["input.json", "--restart", "input.json"], 3, "input.json is not a dpserver model file"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(here, monkeypatch, capsys, arguments, code, message):
    teacher.write_input(here)
    assert exit_code(monkeypatch, "train", *arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def deny(monkeypatch, folder):
    """Let a folder look as if it could not be written to, for root as well."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != folder)


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("ro", {}, "--output ro/w.pt: the folder "),
        ("ck", {"save_ckpt": "ck/model"}, "training.save_ckpt ck/model: the folder "),
        ("ck", {"save_dir": "ck/new"}, "training.save_ckpt ck/new/model.ckpt: the folder "),
        ("ck", {"disp_file": "ck/lcurve.out"}, "training.disp_file ck/lcurve.out: the folder "),
        ("ck", {"tensorboard": True, "tensorboard_log_dir": "ck/log"}, "training.tensorboard_log_dir ck/log: the "),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_work(here, monkeypatch, capsys, place, options, message):
    teacher.write_input(here, **options)
    (here / "ck").mkdir()
    (here / "ro").mkdir()
    deny(monkeypatch, here / place)
    monkeypatch.setattr("dpserver.train.loop.Trainer", lambda *_: pytest.fail("the data were read"))
    assert exit_code(monkeypatch, "train", "input.json", "-o", "ro/w.pt") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert "cannot be written to" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("n_fine", "failed", "message"),
    [
        (0, "model.ckpt-2.pt", "there is no checkpoint yet, start again"),
        (1, "model.ckpt-4.pt", "the newest weights are in {}/model.ckpt-2.pt, continue with: dpserver train "),
        (2, "w.pt", "--restart {}/model.ckpt-4.pt"),
    ],
)
def test_a_full_disk_leaves_the_checkpoints_and_says_so(here, monkeypatch, capsys, n_fine, failed, message):
    teacher.write_input(here, numb_steps=4, save_freq=2)
    sync, calls = os.fsync, []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > 1 + n_fine:  # the first file is the learning curve
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    assert exit_code(monkeypatch, "train", "input.json") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{failed}: No space left on device; make room on its disk" in line
    assert message.format(here) in line
    kept = sorted(path.name for path in here.iterdir() if path.suffix == ".pt" or path.name.startswith("."))
    assert kept == ["model.ckpt-2.pt", "model.ckpt-4.pt"][:n_fine]
    for name in kept:
        assert "resume" in models.read(name)
