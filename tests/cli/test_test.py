"""`dpserver test`: the table, the JSON and the picture."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dpserver.cli import test as command
from dpserver.errors import ConfigError, DataError, ModelFileError, OutputError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
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
    monkeypatch.setattr(checkpoint, "read", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"cannot draw .*parity\.bmp: expected a name that ends in one of"):
        run(folder / "w.pt", folder, "--plot", tmp_path / "parity.bmp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plot", "no/p.png"), "--plot .*no/p.png: expected a file name in an existing folder"),
        (("--plot", "ro/p.png"), "--plot .*ro/p.png: the folder .*/ro cannot be written to"),
        (("-d", "ro/out"), "--detail .*ro/out: the folder .*/ro cannot be written to"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], message: str
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "ro").mkdir()
    monkeypatch.setattr(checkpoint, "read", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path / "ro")
    with pytest.raises(ConfigError, match=message):
        run(folder / "w.pt", folder, arguments[0], tmp_path / arguments[1])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("arguments", [("--plot", "p.png"), ("-d", "out")])
def test_a_full_disk_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str]
) -> None:
    pytest.importorskip("matplotlib")

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    monkeypatch.setattr(np, "savetxt", fill)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/{arguments[1]}.*: No space left on device"):
        run(folder / "w.pt", folder, arguments[0], tmp_path / arguments[1])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        run(tmp_path / "w.pt", folder)
    with pytest.raises(DataError, match="does not exist"):
        run(folder / "w.pt", tmp_path / "data")
    assert CliRunner().invoke(app, [str(folder / "w.pt"), str(folder), "--batch", "0"]).exit_code == 2


# --- as with dp test ---------------------------------------------------------------------------------------------


def overall(*arguments: object) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(run(*arguments, "--json"))["overall"]
    return found


def test_the_same_in_dp_tests_words(folder: Path, tmp_path: Path) -> None:
    expected = overall(folder / "w.pt", folder / "a", folder / "b")
    (tmp_path / "systems.txt").write_text(f"{folder / 'a'}\n\n{folder / 'b'}\n")
    model = ("-m", folder / "w.pt")
    assert overall(*model, "-s", folder) == expected
    assert overall(*model, folder / "a", "-s", folder / "b") == expected
    assert overall("--model", folder / "w.pt", "--system", folder / "a", "--system", folder / "b") == expected
    assert overall(*model, "-f", tmp_path / "systems.txt") == expected


def test_data_of_an_input(folder: Path, tmp_path: Path) -> None:
    sections = {"training_data": {"systems": ["a"]}, "validation_data": {"systems": str(folder / "b")}}
    (tmp_path / "a").symlink_to(folder / "a")
    (tmp_path / "input.json").write_text(json.dumps({"model": {"type": "unheard of"}, "training": sections}))
    source = tmp_path / "input.json"
    assert overall(folder / "w.pt", "--train-data", source) == overall(folder / "w.pt", folder / "a")
    assert overall(folder / "w.pt", "--valid-data", source) == overall(folder / "w.pt", folder / "b")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"empty\.json has no section training\.validation_data"):
        run(folder / "w.pt", "--valid-data", tmp_path / "empty.json")


def test_numbers_of_frames(folder: Path) -> None:
    found = json.loads(run(folder / "w.pt", folder, "-n", "2", "--json"))["systems"]
    assert [s["n_frames"] for s in found] == [2, 2]
    assert [s["n_frames"] for s in json.loads(run(folder / "w.pt", folder, "-n", "9", "--json"))["systems"]] == [3, 3]


def test_frames_at_random(folder: Path, tmp_path: Path) -> None:
    def drawn(*options: str) -> list[float]:
        run(folder / "w.pt", folder / "a", "-d", tmp_path / "x", *options)
        return np.loadtxt(tmp_path / "x.e.out", ndmin=2)[:, 0].tolist()

    in_order = drawn()
    first, again = (drawn("--shuffle-test", "-r", "1") for _ in range(2))
    assert first == again
    assert sorted(first) == sorted(in_order)
    assert {tuple(drawn("--shuffle-test", "-r", str(seed), "-n", "1")) for seed in range(9)} == {(e,) for e in in_order}


def test_detail_files(folder: Path, tmp_path: Path) -> None:
    run(folder / "w.pt", folder / "a", folder / "b", "--detail", tmp_path / "x.anything")
    names = ("e", "e_peratom", "f", "s", "v", "v_peratom")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"x.{name}.out" for name in names]
    energy = np.loadtxt(tmp_path / "x.e.out")
    np.testing.assert_allclose(energy[:, 0] - energy[:, 1], [0.0] * 3 + [0.024] * 3, atol=1e-9)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "x.e_peratom.out"), energy / 24)
    assert (tmp_path / "x.e.out").read_text().startswith(f"# {folder / 'a'}: data_e pred_e\n")
    forces = np.loadtxt(tmp_path / "x.f.out")
    assert forces.shape == (2 * 3 * 24, 6)
    expected = np.concatenate([np.load(folder / name / "set.000/force.npy").reshape(-1, 3) for name in "ab"])
    np.testing.assert_array_equal(forces[:, :3], expected)
    np.testing.assert_allclose(forces[72:, 3:], forces[72:, :3] - 0.048, atol=1e-9)


def test_a_second_run_starts_the_files_anew(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run(folder / "w.pt", folder / "a", "-d", tmp_path / "x")
    assert len(np.loadtxt(tmp_path / "x.e.out")) == 3


def test_details_of_labels_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    """As with DeePMD-kit they are zero."""
    copy = tmp_path / "a"
    shutil.copytree(folder / "a", copy)
    (copy / "set.000/virial.npy").unlink()
    run(folder / "w.pt", copy, "-d", tmp_path / "x")
    virial = np.loadtxt(tmp_path / "x.v.out")
    assert not virial[:, :9].any()
    assert virial[:, 9:].any()
    assert not (tmp_path / "x.s.out").exists()


def test_energies_of_atoms(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no labels of single atoms \(atom_ener\.npy or atomic_ener\.npy\)"):
        run(folder / "w.pt", folder / "a", "-a")
    copy = tmp_path / "a"
    shutil.copytree(folder / "a", copy)
    frames = [structures.cubic(seed=k) for k in range(3)]
    exact = checkpoint.load(folder / "w.pt").evaluate(Frames.concatenate(frames)).atom_energy
    np.save(copy / "set.000/atom_ener.npy", exact.reshape(3, -1) + 0.5)
    assert overall(folder / "w.pt", copy, "-a")["atom_energy"]["mae"] == pytest.approx(0.5)
    assert "atomic energy" in run(folder / "w.pt", copy)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the dipoles of oxygen, and data of two systems with its dipoles, off by 0.1, for the atoms of O."""
    path = tmp_path_factory.mktemp("dipole")
    config = parse(
        ModelConfig,
        {
            "type_map": list(structures.SPECIES),
            "descriptor": {"type": "se_e2_a", "sel": [30, 60], "rcut": 4.0, "neuron": [2, 4], "axis_neuron": 2},
            "fitting_net": {"type": "dipole", "neuron": [4], "sel_type": [0]},
        },
    )
    model = TensorModel(config, seed=3)
    checkpoint.save(path / "dipole.pt", model, {})
    for name in ("a", "b"):
        frames = [structures.cubic(seed=k) for k in range(3)]
        result = model.evaluate(Frames.concatenate(frames))
        carriers = np.concatenate([f.types for f in frames]) == 0
        (path / name / "set.000").mkdir(parents=True)
        np.savetxt(path / name / "type.raw", frames[0].types, fmt="%d")
        for label, values in (
            ("coord", [f.positions for f in frames]),
            ("box", [f.cell for f in frames]),
            ("dipole", result.total + 0.1),
            ("atomic_dipole", result.atoms[carriers] + 0.2),
        ):
            np.save(path / name / "set.000" / f"{label}.npy", np.reshape(values, (3, -1)))
    return path


def test_dipoles(tensors: Path, tmp_path: Path) -> None:
    found = overall(tensors / "dipole.pt", tensors, "-d", tmp_path / "x")
    n_carriers = int((structures.cubic(seed=0).types == 0).sum())
    assert set(found) == {"dipole", "dipole_per_atom", "atom_dipole"}
    assert found["dipole"]["rmse"] == pytest.approx(0.1)
    assert found["dipole_per_atom"]["rmse"] == pytest.approx(0.1 / n_carriers)
    assert found["atom_dipole"]["rmse"] == pytest.approx(0.2)
    assert found["atom_dipole"]["n"] == 2 * 3 * n_carriers * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.out", "x.out.1"]
    assert (tmp_path / "x.out.1").read_text().startswith("# data_x data_y data_z pred_x pred_y pred_z\n")
    rows = np.loadtxt(tmp_path / "x.out")
    np.testing.assert_allclose(rows[:, :3], rows[:, 3:] + 0.1)
    assert "atomic dipole" in run(tensors / "dipole.pt", tensors)


def test_dipoles_of_atoms(tensors: Path, tmp_path: Path) -> None:
    run(tensors / "dipole.pt", tensors / "a", "-d", tmp_path / "x", "--atomic")
    n_carriers = int((structures.cubic(seed=0).types == 0).sum())
    header = (tmp_path / "x.out").read_text().splitlines()[0].split()
    assert header[1:5] == ["data_x1", "data_y1", "data_z1", "data_x2"]
    assert header[-1] == f"pred_z{n_carriers}"
    rows = np.loadtxt(tmp_path / "x.out")
    assert rows.shape == (3, 2 * 3 * n_carriers)
    np.testing.assert_allclose(rows[:, : 3 * n_carriers], rows[:, 3 * n_carriers :] + 0.2)


def test_models_and_data_of_different_kinds(folder: Path, tensors: Path) -> None:
    with pytest.raises(DataError, match="has energy, forces, virial, but the model predicts dipole, atom_dipole"):
        run(tensors / "dipole.pt", folder / "a")
    with pytest.raises(DataError, match="has dipole, atom_dipole, but the model predicts energy, forces, virial"):
        run(folder / "w.pt", tensors / "a")


def test_what_is_missing_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a model file and data: dpserver test w\.pt DATA, or -m w\.pt"):
        run()
    with pytest.raises(ConfigError, match="expected data to test on"):
        run(folder / "w.pt")
    with pytest.raises(ConfigError, match=r"--datafile .*systems\.txt: cannot be read"):
        run(folder / "w.pt", "-f", tmp_path / "systems.txt")
    with pytest.raises(ConfigError, match=r"--detail .*nowhere/x: expected the beginning of a file name"):
        run(folder / "w.pt", folder / "a", "-d", tmp_path / "nowhere/x")
