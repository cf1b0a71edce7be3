"""`dpserver import` and `dpserver export`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import run

pytest.importorskip("h5py")

from dpserver.models import checkpoint, deepmd
from tests.models import committees
from tests.models.deepmd import stored


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for suffix in (".pth", ".dp"):
        shutil.copy(stored.FOLDER / f"a{suffix}", tmp_path / f"model{suffix}")
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_frozen_model_becomes_a_model_file(folder, monkeypatch, capsys):
    run(monkeypatch, "import", "model.pth", "w.pt")
    assert "imported: w.pt" in capsys.readouterr().err
    frames, expected = stored.answers("a")
    result = checkpoint.load("w.pt", "cpu").evaluate(frames)
    np.testing.assert_allclose(result.forces, expected["forces"], rtol=0, atol=1e-9)
    assert checkpoint.read("w.pt")["template"] is None
    run(monkeypatch, "info", "w.pt")
    card = " ".join(capsys.readouterr().out.split())
    assert "imported │ DeePMD-kit" in card or "imported DeePMD-kit" in card
    assert "model.pth" in card


def test_the_order_of_the_atoms_is_kept_where_it_is_given(folder, monkeypatch, capsys):
    run(monkeypatch, "import", "model.pth", "w.pt", "--template", "water.xyz")
    assert "--template" not in capsys.readouterr().err
    assert checkpoint.load("w.pt", "cpu").template == ("O", "H", "H")
    Path("water.xyz").write_text("2\n\nO 0 0 0\nC 0 0 1\n")
    run(monkeypatch, "import", "model.pth", "w.pt", "--template", "water.xyz", code=2)
    assert "has the species C, which model.pth does not know; it knows O H" in capsys.readouterr().err


def test_one_of_several_models_is_imported(folder, monkeypatch, capsys):
    shutil.copy(stored.FOLDER / "m.pt", "several.pt")
    run(monkeypatch, "import", "several.pt", "w.pt", code=3)
    assert "it holds several models: first, second, radial; take one with `dpserver import" in capsys.readouterr().err
    run(monkeypatch, "import", "several.pt", "w.pt", "--head", "radial")
    assert checkpoint.read("w.pt")["species"] == ["H", "O"]
    assert checkpoint.read("w.pt")["training"]["from"] == "several.pt, head radial"


def test_a_model_file_is_exported_and_imported_again(folder, monkeypatch, capsys):
    run(monkeypatch, "import", "model.pth", "w.pt")
    run(monkeypatch, "export", "w.pt", "new.dp")
    assert "dp convert-backend new.dp new.pth" in capsys.readouterr().err
    expected, found = deepmd.load("model.dp").state_dict(), deepmd.load("new.dp").state_dict()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
    run(monkeypatch, "export", "model.pth", "single.dp", "--precision", "single")
    assert deepmd.read("single.dp")["model"]["fitting"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("import", "none.pth", "w.pt"), 3, "none.pth does not exist"),
        (("import", "water.xyz", "w.pt"), 3, "water.xyz is no model of DeePMD-kit; expected a .pth, .pt, .pb, .dp"),
        (("import", "model.pth", "nowhere/w.pt"), 2, "nowhere/w.pt: expected a file name in an existing folder"),
        (("import", "model.pth", "model.pth"), 2, "model.pth is the file to read; give the new one a name of its own"),
        (("import", "ours.pt", "w.pt"), 3, "ours.pt is no model of DeePMD-kit"),
        (("export", "ours.pt", "m.pth"), 2, "m.pth: expected a name that ends in .dp"),
        (("export", "ours.pt", "m.dp", "--precision", "half"), 2, "precision 'half' is unknown"),
        (("export", "committee.pt", "m.dp"), 2, "committee.pt is a committee, and a .dp file holds one model"),
    ],
)
def test_refused(folder, monkeypatch, capsys, arguments, code, expected):
    for seed in (1, 2):
        checkpoint.save(f"{seed}.pt", committees.member(seed))
    checkpoint.save("ours.pt", committees.member(1))
    checkpoint.write("committee.pt", checkpoint.join(["1.pt", "2.pt"]))
    run(monkeypatch, *arguments, code=code)
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("w.pt").exists()
    assert not Path("m.dp").exists()
