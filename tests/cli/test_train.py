import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpserver.models import checkpoint as models
from dpserver.train import curve
from tests.train import teacher


def command(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, "-m", "dpserver", "train", *arguments],
        cwd=folder, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert not check or process.returncode == 0, process.stderr
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


def test_the_seed_can_be_given_beside_the_input(tmp_path):
    teacher.write_input(tmp_path, numb_steps=2, seed=3)
    command(tmp_path, "input.json", "-o", "3.pt")
    command(tmp_path, "input.json", "-o", "4.pt", "--seed", "4")
    command(tmp_path, "input.json", "-o", "again.pt", "--seed", "3")
    files = {name: models.read(tmp_path / f"{name}.pt") for name in ("3", "4", "again")}
    assert [values["training"]["seed"] for values in files.values()] == [3, 4, 3]
    weight = {name: values["state"]["fitting.0.0.weight"] for name, values in files.items()}
    assert weight["3"].equal(weight["again"])
    assert not weight["3"].equal(weight["4"])


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
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "continue with: dpserver train input.json --restart model.ckpt" in stderr
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
    _, stderr = process.communicate(timeout=60)
    assert "model: w.pt" in stderr
    assert (tmp_path / "w.pt").exists()


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
def test_what_cannot_work_is_said_in_one_line(tmp_path, arguments, code, message):
    teacher.write_input(tmp_path)
    process = command(tmp_path, *arguments, check=False)
    assert process.returncode == code
    assert message in process.stderr
    assert "Traceback" not in process.stderr
