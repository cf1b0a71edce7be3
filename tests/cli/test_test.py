"""`dpserver test`: the table, the JSON and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dpserver.cli import test as command
from dpserver.errors import ConfigError, DataError, ModelFileError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.models import committees

app = typer.Typer()
app.command()(command.test)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and two systems whose labels are its energies and forces, the second's off by known amounts."""
    path = tmp_path_factory.mktemp("test")
    config = parse(
        ModelConfig,
        {
            "type_map": list(structures.SPECIES),
            "descriptor": {"type": "se_e2_a", "sel": [30, 60], "rcut": 4.0, "neuron": [2, 4], "axis_neuron": 2},
            "fitting_net": {"neuron": [4]},
        },
    )
    potential = Potential(config, seed=3)
    checkpoint.save(path / "w.pt", potential, {})
    for name, offset in (("a", 0.0), ("b", 0.024)):
        frames = [structures.cubic(seed=k) for k in range(3)]
        result = potential.evaluate(Frames.concatenate(frames))
        (path / name / "set.000").mkdir(parents=True)
        np.savetxt(path / name / "type.raw", frames[0].types, fmt="%d")
        for label, values in (
            ("coord", [f.positions for f in frames]),
            ("box", [f.cell for f in frames]),
            ("energy", result.energy + offset),
            ("force", result.forces + 2 * offset),
            ("virial", result.virial),
        ):
            np.save(path / name / "set.000" / f"{label}.npy", np.reshape(values, (3, -1)))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json(folder: Path) -> None:
    found = json.loads(run(folder / "w.pt", folder / "a", folder / "b", "--json"))
    assert found["model"] == str(folder / "w.pt")
    assert [s["name"] for s in found["systems"]] == [str(folder / "a"), str(folder / "b")]
    exact, off = (s["errors"] for s in found["systems"])
    for name in ("energy", "energy_per_atom", "force", "virial", "virial_per_atom"):
        assert exact[name]["rmse"] == pytest.approx(0.0, abs=1e-12)
    assert off["energy"]["mae"] == pytest.approx(0.024)
    assert off["energy_per_atom"]["mae"] == pytest.approx(0.001)
    assert off["force"]["rmse"] == pytest.approx(0.048)
    assert found["overall"]["energy"]["mae"] == pytest.approx(0.012)


def test_table(folder: Path) -> None:
    text = run(folder / "w.pt", folder)
    for expected in ("3 frames, 72 atoms", "all 2 systems", "energy per atom", "meV/Å", "virial per atom"):
        assert expected in text
    rows = [line.split() for line in text.splitlines() if line.startswith("energy per atom")]
    assert [float(w) for w in rows[1][3:5]] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_a_committee_shows_how_far_its_members_lie_apart(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        checkpoint.save(tmp_path / f"{seed}.pt", committees.member(seed))
    checkpoint.write(tmp_path / "w.pt", checkpoint.join([tmp_path / "1.pt", tmp_path / "2.pt"]))
    (row,) = [line.split() for line in run(tmp_path / "w.pt", folder / "a").splitlines() if "members" in line]
    frames = Frames.concatenate(structures.cubic(seed=k) for k in range(3))
    first, second = (committees.member(seed).evaluate(frames).forces for seed in (1, 2))
    spread = 1e3 * np.abs(first - second) / 2  # of two members both lie as far from their mean, meV/Å
    assert [float(word) for word in row[1:3]] == pytest.approx([spread.mean(), np.sqrt((spread**2).mean())], rel=1e-3)
    assert "members" not in run(folder / "w.pt", folder / "a")


@pytest.mark.parametrize("options", [["--batch", "1"], ["--device", "cpu"], ["--precision", "double"]])
def test_options_change_no_number(folder: Path, options: list[str]) -> None:
    default, found = (json.loads(run(folder / "w.pt", folder, "--json", *o)) for o in ([], options))
    for name, expected in default["overall"].items():
        assert found["overall"][name]["rmse"] == pytest.approx(expected["rmse"], abs=1e-12)


def test_single_precision_is_close(folder: Path) -> None:
    found = json.loads(run(folder / "w.pt", folder / "a", "--json", "--precision", "single"))
    assert 0.0 < found["overall"]["force"]["rmse"] < 1e-4


def test_picture(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(folder / "w.pt", folder, "--plot", tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_picture_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"cannot draw .*parity\.bmp: expected a name that ends in one of"):
        run(folder / "w.pt", folder, "--plot", tmp_path / "parity.bmp")


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        run(tmp_path / "w.pt", folder)
    with pytest.raises(DataError, match="does not exist"):
        run(folder / "w.pt", tmp_path / "data")
    assert CliRunner().invoke(app, [str(folder / "w.pt"), str(folder), "--batch", "0"]).exit_code == 2
