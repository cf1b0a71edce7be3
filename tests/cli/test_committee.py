"""`dpserver committee`, and the card of what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpserver.models import checkpoint
from tests.cli.commands import run
from tests.models import committees


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed in (1, 2, 3):
        training = {"seed": seed, "steps": 1000, "validation": {"f": 0.05 + seed / 1000}}
        checkpoint.save(tmp_path / f"{seed}.pt", committees.member(seed, rcut=4.5 if seed == 3 else 4.0), training)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_are_joined(folder, monkeypatch, capsys):
    run(monkeypatch, "committee", "1.pt", "2.pt", "3.pt", "-o", "w.pt")
    assert "committee of 3: w.pt" in capsys.readouterr().err
    loaded = checkpoint.load("w.pt", "cpu")
    assert [m.rcut for m in loaded.members] == [4.0, 4.0, 4.5]


def test_the_card_says_what_is_common_once(folder, monkeypatch, capsys):
    run(monkeypatch, "committee", "1.pt", "2.pt", "3.pt", "-o", "w.pt")
    run(monkeypatch, "info", "w.pt")
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("committee 3 members") for line in lines)
    assert sum(line.startswith("embedding net") for line in lines) == 1
    for expected in ("species O H", "steps 1000", "seed 1: 1", "3: 3", "descriptor 1: se_e2_a, cutoff 4 Å",
                     "3: se_e2_a, cutoff 4.5 Å", "validation 1: f 0.051", "2: f 0.052"):  # fmt: skip
        assert expected in lines, lines


def test_json_has_the_members_and_what_they_share(folder, monkeypatch, capsys):
    run(monkeypatch, "committee", "1.pt", "2.pt", "-o", "w.pt")
    run(monkeypatch, "info", "w.pt", "--json")
    described = json.loads(capsys.readouterr().out)
    assert [member["training"]["seed"] for member in described["members"]] == [1, 2]
    assert described["species"] == ["O", "H"]
    assert described["n_parameters"] == 2 * described["members"][0]["n_parameters"]
    assert described["statistics"]["min_distance"] == [[None, None], [None, None]]
    single = checkpoint.read("1.pt")
    assert described["members"][0]["state"] == {name: list(t.shape) for name, t in single["state"].items()}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["1.pt", "-o", "w.pt"], 2, "a committee needs at least two models, got 1"),
        (["1.pt", "1.pt", "-o", "w.pt"], 2, "1.pt holds the same weights as 1.pt"),
        (["1.pt", "2.pt", "-o", "2.pt"], 2, "--output 2.pt is one of the models to join"),
        (["1.pt", "2.pt", "-o", "no/w.pt"], 2, "--output no/w.pt: expected a file name in an existing folder"),
        (["1.pt", "4.pt", "-o", "w.pt"], 3, "model file 4.pt does not exist"),
        (["1.pt", "2.pt"], 2, "Missing option '--output'"),
    ],
)
def test_refusals(folder, monkeypatch, capsys, arguments, code, message):
    run(monkeypatch, "committee", *arguments, code=code)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("w.pt").exists()
