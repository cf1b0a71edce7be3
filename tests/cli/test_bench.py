"""`dpserver bench`: what it prints, and what it refuses. How long things take is nobody's test."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import ase.io
import pytest

from tests.cli.commands import run

WATER = Path(__file__).parents[2] / "examples" / "water"
QUICK = ("--sizes", "24,192", "--beads", "1,2", "--repeats", "1", "--threads", "1")


def test_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "bench", WATER / "w.pt", *QUICK, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(row["n_frames"], row["n_atoms"]) for row in found["evaluations"]] == [(1, 24), (1, 192), (2, 48)]
    assert all(0 < row["least"] <= row["median"] for row in found["evaluations"])
    assert {"edges", "moments", "products", "fitting", "sums"} <= set(found["stages_us_per_atom"])
    assert 0 < found["of_ceiling"] < 2
    assert found["evaluated_by"][0].startswith("CPU kernels in float32 on 1 thread")


def test_prints_tables_of_a_tiled_structure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "bench", WATER / "committee.pt", *QUICK, "--structure", WATER / "water.xyz")
    out = capsys.readouterr().out
    assert "192" in out
    assert "384" not in out
    assert "stages: edges" in out
    assert "matrix products alone" in out


@pytest.mark.parametrize("model", ["deepmd/a.dp", "deepmd/r.dp", "deepmd/t.pth", "deepmd/h.pth", "fittings/e.pt"])
def test_any_model_gets_a_structure_that_it_can_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    options = ("--sizes", "192", "--beads", "1", "--repeats", "1", "--threads", "1", "--json")
    run(monkeypatch, "bench", WATER.parents[1] / "tests" / "data" / model, *options)
    assert json.loads(capsys.readouterr().out)["evaluations"][0]["n_atoms"] == 192


@pytest.mark.parametrize("option", ["--sizes", "--beads"])
@pytest.mark.parametrize("value", ["many", "0", "", "10,,20"])
def test_refuses_what_is_no_list_of_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    run(monkeypatch, "bench", WATER / "w.pt", option, value, code=2)
    assert f"{option} must be positive numbers with commas in between" in capsys.readouterr().err


def test_refuses_structures_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    helium, molecule = tmp_path / "he.xyz", tmp_path / "water.xyz"
    ase.io.write(helium, ase.Atoms("He", cell=[5, 5, 5], pbc=True))
    ase.io.write(molecule, ase.Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    for file, message in (
        (helium, "has the species He; the model knows O H"),
        (molecule, "must be periodic along all three"),
        (tmp_path / "none.xyz", "cannot be read"),
    ):
        run(monkeypatch, "bench", WATER / "w.pt", "--structure", file, code=2)
        assert message in capsys.readouterr().err
