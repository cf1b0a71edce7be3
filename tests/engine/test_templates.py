import sys
from pathlib import Path

import pytest

from dpserver.engine.templates import read_symbols
from dpserver.errors import ConfigError

PLAIN = "3\n# CELL(abcABC): 10 10 10 90 90 90\nO 0 0 0\nH 0 0 1\nH 0 1 0\n"
EXTENDED = '2\nLattice="9 0 0 0 9 0 0 0 9" Properties=pos:R:3:species:S:1:forces:R:3 pbc="T T T"\n'
EXTENDED += "0 0 0 O 0 0 0\n1 0 0 H 0 0 0\n"


@pytest.mark.parametrize(
    ("text", "symbols"),
    [(PLAIN, ("O", "H", "H")), (PLAIN + PLAIN, ("O", "H", "H")), (EXTENDED, ("O", "H")), ("1\n\nOW 0 0 0\n", ("OW",))],
)
def test_xyz_is_read_without_ase(tmp_path, monkeypatch, text, symbols):
    monkeypatch.setitem(sys.modules, "ase", None)
    path = tmp_path / "w.xyz"
    path.write_text(text)
    assert read_symbols(path) == symbols


@pytest.mark.parametrize("text", ["many\n\n", "3\n", "3\ncomment\nO 0 0 0\n", "1\ncomment\n\n"])
def test_a_damaged_xyz_names_the_file(tmp_path, text):
    path = tmp_path / "w.xyz"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"w\.xyz' is no XYZ file"):
        read_symbols(path)


def test_a_file_that_ends_too_early_says_so(tmp_path):
    path = tmp_path / "w.xyz"
    path.write_text("3\ncomment\nO 0 0 0\n")
    with pytest.raises(ConfigError, match="is no XYZ file: it ends too early; expected the number of atoms"):
        read_symbols(path)


@pytest.mark.parametrize("name", ["w.xyz", "w.pdb"])
def test_an_empty_file_is_empty(tmp_path, name):
    path = tmp_path / name
    path.touch()
    with pytest.raises(ConfigError, match=rf"{name}' is empty; give a file of one structure"):
        read_symbols(path)


def test_no_atoms(tmp_path):
    path = tmp_path / "w.xyz"
    path.write_text("0\n\n")
    with pytest.raises(ConfigError, match="holds no atoms"):
        read_symbols(path)


def test_a_missing_file_says_from_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"'w\.xyz' is no file \(seen from {tmp_path}\)"):
        read_symbols(Path("w.xyz"))


def test_other_formats_are_left_to_ase(tmp_path):
    build = pytest.importorskip("ase.build")
    build.molecule("H2O").write(tmp_path / "w.pdb")
    assert read_symbols(tmp_path / "w.pdb") == ("O", "H", "H")
    (tmp_path / "broken.cif").write_bytes(b"\0\1\2")
    with pytest.raises(ConfigError, match=r"broken\.cif' cannot be read"):
        read_symbols(tmp_path / "broken.cif")


def test_other_formats_without_ase_say_how_to_get_it(tmp_path, monkeypatch):
    for name in ("ase", "ase.io"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "w.pdb").write_text("ATOM")
    with pytest.raises(ConfigError, match=r"pip install 'dpserver\[ase\]'"):
        read_symbols(tmp_path / "w.pdb")


def test_a_path_that_the_system_refuses_is_no_bug_of_ours(tmp_path, monkeypatch):
    """The peer chooses the path: whatever is wrong with it is told to that peer alone."""
    with pytest.raises(ConfigError, match=r"template 'x.*' (cannot be read: File name too long|is no file)"):
        read_symbols(Path("x" * 300))
    path = tmp_path / "w.xyz"
    path.write_text(PLAIN)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"w\.xyz' cannot be read: Permission denied"):
        read_symbols(path)
