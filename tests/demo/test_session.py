import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpserver.demo import session
from dpserver.errors import ConfigError, DPServerError, ModelFileError, StructureError

WATER = "3\n{}\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


@pytest.fixture
def settings(tmp_path) -> session.Settings:
    (tmp_path / "w.pt").touch()
    structure = tmp_path / "water.xyz"
    structure.write_text(WATER.format("# CELL(abcABC): 8 8 8 90 90 90 positions{angstrom} cell{angstrom}"))
    return session.Settings(tmp_path / "w.pt", structure, tmp_path / "run", beads=4, steps=6)


def test_input_says_what_was_asked(settings):
    session.prepare(settings, "somewhere")
    root = ElementTree.parse(settings.output / "input.xml").getroot()
    assert root.findtext("total_steps") == "6"
    assert root.find("system/initialize").attrib == {"nbeads": "4"}
    assert root.find("system/initialize/file").attrib == {"mode": "xyz"}
    assert root.findtext("ffsocket/address") == "somewhere"
    assert "kinetic_cv{electronvolt}(O), kinetic_cv{electronvolt}(H)" in root.findtext("output/properties")


def test_extended_xyz_is_read_through_ase(settings):
    settings.structure.write_text(WATER.format('Lattice="8 0 0 0 8 0 0 0 8" Properties=species:S:1:pos:R:3'))
    session.prepare(settings, "somewhere")
    root = ElementTree.parse(settings.output / "input.xml").getroot()
    assert root.find("system/initialize/file").attrib == {"mode": "ase"}


def test_files_of_an_earlier_run_go_and_others_stay(settings):
    settings.output.mkdir()
    for name in ("simulation.out", "simulation.pos_7.xyz", "EXIT", "i-pi.log", "notes.txt"):
        (settings.output / name).touch()
    session.prepare(settings, "somewhere")
    assert sorted(p.name for p in settings.output.iterdir()) == ["input.xml", "notes.txt"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beads": 0}, ConfigError, "beads must be greater than 0, got 0"),
        ({"minutes": float("nan")}, ConfigError, "minutes must be greater than 0, got nan"),
        ({"model": Path("no.pt")}, ModelFileError, r"no model file no\.pt"),
        ({"structure": Path("no.xyz")}, StructureError, r"no structure file no\.xyz"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(settings, change, error, message):
    with pytest.raises(error, match=message):
        session.prepare(replace(settings, **change), "somewhere")
    assert not settings.output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not an xyz file"), ("water\n\nO 0 0 0\n", "is not an xyz file"), ("3\n\nO 0 0 0\n", "announces 3 atoms")],
)
def test_a_structure_that_is_no_xyz_is_refused(settings, text, message):
    settings.structure.write_text(text)
    with pytest.raises(StructureError, match=message):
        session.read_symbols(settings.structure)


def test_steps_are_read_from_complete_lines_only(tmp_path):
    path = tmp_path / "simulation.out"
    assert session.steps_done(path) is None
    path.write_text("# column   1     --> step : The current simulation time step.\n")
    assert session.steps_done(path) is None
    path.write_text(path.read_text() + "   0.0e+00  1.0\n   1.2e+01  1.0\n   1.3e+01")
    assert session.steps_done(path) == 12


def test_the_time_decides_where_no_steps_are_given(settings):
    assert session.plan(settings, 3, 1.0) == 6
    by_time = replace(settings, steps=None, minutes=2.0)
    assert session.plan(by_time, 0, 5.0) is None
    assert session.plan(by_time, 10, 5.0) == 240
    assert session.plan(by_time, 250, 121.0) == 250


def test_an_engine_that_leaves_ends_the_run_with_its_last_words(settings):
    pytest.importorskip("ipi")

    def engine(_settings, _address):
        return [sys.executable, "-c", "import sys; sys.exit('error: this model is of another kind')"]

    with pytest.raises(DPServerError, match=r"dpserver left with status 1 after 0 steps.*error: this model is of an"):
        session.run(settings, lambda progress: None, engine)


def test_without_ipi_the_error_says_how_to_get_it(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"i-PI is not installed; run: pip install 'dpserver\[ipi,ase,plot\]'"):
        session.run(settings, lambda progress: None, lambda _settings, _address: ["true"])
