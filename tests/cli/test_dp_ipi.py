"""The input of DeePMD-kit's `dp_ipi`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.cli import dp_ipi
from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.transport import InetEndpoint, UnixEndpoint
from tests import fake_deepmd, structures
from tests.cli.commands import exit_code
from tests.cli.test_serve import CONFIG, in_background
from tests.doubles import PairModel
from tests.patience import PATIENCE
from tests.peer import EXIT, Peer

WATER: dict[str, Any] = {
    "verbose": False, "use_unix": True, "port": 31415, "host": "localhost", "graph_file": "graph.pb",
    "coord_file": "conf.xyz", "atom_type": {"OW": 0, "HW1": 1, "HW2": 1},
}  # fmt: skip
FRAME = structures.cubic()


def write(folder: Path, *without: str, **changed: Any) -> Path:
    """DeePMD-kit's example, changed."""
    given = {key: value for key, value in {**WATER, **changed}.items() if key not in without}
    (folder / "water.json").write_text(json.dumps(given))
    return folder / "water.json"


def write_names(folder: Path, name: str = "conf.xyz") -> None:
    """The atoms of the frame by the names of a force field, the first hydrogen of each molecule called otherwise."""
    hydrogens = iter(["HW1", "HW2"] * len(FRAME.types))
    names = ["OW" if kind == 0 else next(hydrogens) for kind in FRAME.types]
    (folder / name).write_text(f"{len(names)}\nwater\n" + "".join(f"{n} 0 0 0\n" for n in names))


def test_what_the_keys_mean(tmp_path: Path) -> None:
    found = dp_ipi.read(write(tmp_path, comment="water", verbose=True))
    assert found == dp_ipi.DPIPI(
        tmp_path / "water.json", Path("graph.pb"), "localhost", None, Path("conf.xyz"), WATER["atom_type"], True,
        ("comment",),
    )  # fmt: skip
    assert found.endpoint("/tmp/ipi_") == UnixEndpoint("/tmp/ipi_localhost")
    assert dp_ipi.read(write(tmp_path, use_unix=False)).endpoint("") == InetEndpoint("localhost", 31415)
    assert dp_ipi.read(write(tmp_path, "port", "verbose")).port is None


def test_the_names_of_the_atoms_are_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_names(tmp_path, "atoms.gro")
    (tmp_path / "elsewhere").mkdir()
    order = dp_ipi.read(write(tmp_path / "elsewhere", coord_file="atoms.gro")).order()
    np.testing.assert_array_equal(order.types(("O", "H")), FRAME.types)
    np.testing.assert_array_equal(order.types(("X", "Y", "Z")), FRAME.types)
    assert order.symbols[:3] in {("OW", "HW1", "HW2"), ("OW", "OW", "HW1"), ("OW",) * 3}
    assert "the coord_file of " in order.origin


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"graph_file": ["a.pb", "b.pb"]}, "graph_file is a list, which dp_ipi does not take either"),
        ({"graph_file": 1}, "graph_file is 1, expected a text"),
        ({"use_unix": 1}, "use_unix is 1, expected true or false"),
        ({"use_unix": False, "port": "31415"}, "port is '31415', expected a whole number"),
        ({"use_unix": False, "port": True}, "port is True, expected a whole number"),
        ({"atom_type": ["O", "H"]}, "expected types by name, as"),
        ({"atom_type": {"O": "0"}}, "atom_type of O is '0', expected a type of the model, from 0 on"),
        ({"atom_type": {"O": -1}}, "atom_type of O is -1, expected a type of the model"),
        ({"verbose": "no"}, "verbose is 'no', expected true or false"),
    ],
)
def test_values_it_cannot_use(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        dp_ipi.read(write(tmp_path, **changed))
    assert expected in str(error.value)


@pytest.mark.parametrize("key", ["use_unix", "host", "graph_file", "coord_file", "atom_type"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks {key}; the input of dp_ipi has verbose, use_unix, port, host"):
        dp_ipi.read(write(tmp_path, key))


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "is no JSON"), ("[]", "holds a list"), ("[" * 100_000, "is no JSON"), ("\xff", "JSON")]
)
def test_files_that_are_none(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "water.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=expected):
        dp_ipi.read(tmp_path / "water.json")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        dp_ipi.read(tmp_path / "none.json")


def test_names_without_a_type_and_types_the_model_lacks(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_names(tmp_path)
    checkpoint.save("w.pt", Potential(parse(ModelConfig, CONFIG)))
    water = write(tmp_path, graph_file="w.pt", atom_type={"OW": 0, "HW1": 1})
    assert exit_code(monkeypatch, "--dp-ipi", water) == 2
    assert "is called 'HW2', to which the coord_file of " in capsys.readouterr().err
    water = write(tmp_path, graph_file="w.pt", atom_type={"OW": 0, "HW1": 1, "HW2": 2})
    assert exit_code(monkeypatch, "--dp-ipi", water) == 2
    assert "gives 'HW2' the type 2; the model has 0 to 1: O, H" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "w.pt"], "--model is decided"),
        (["--port", "1", "--host", "a"], "--port, --host are decided"),
        (["--template", "w.xyz"], "--template is decided"),
        (["--species", "O H H"], "--species is decided"),
        (["--unix", "a", "--connect", "unix:b"], "--unix, --connect are decided"),
        (["-u"], "-u is decided"),
        (["--shm"], "--shm is decided"),
        (["--mpi-driver"], "--mpi-driver is decided"),
    ],
)
def test_options_that_contradict_it(tmp_path: Path, monkeypatch, capsys, options: list[str], named: str) -> None:
    assert exit_code(monkeypatch, "--dp-ipi", write(tmp_path), *options) == 2
    assert f"error: {named} by the file of --dp-ipi; change it there, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["native", "deepmd"])
def test_a_peer_is_served_as_by_dp_ipi(tmp_path: Path, monkeypatch, capsys, backend: str) -> None:
    monkeypatch.chdir(tmp_path)
    fake_deepmd.install(monkeypatch)
    write_names(tmp_path)
    if backend == "deepmd":
        fake_deepmd.model_file(tmp_path)
        expected = PairModel().evaluate(FRAME)
    else:
        checkpoint.save("graph.pb", Potential(parse(ModelConfig, CONFIG)))
        expected = checkpoint.load("graph.pb", device="cpu").evaluate(FRAME)
    replies = []
    with Peer() as peer:
        name = str(peer.address).removeprefix("/tmp/ipi_")
        water = write(tmp_path, host=name, verbose=True, atom_type={**WATER["atom_type"], "H": 0}, note="x")

        def play() -> None:
            with peer.accept() as line:
                line.handshake()
                replies.append(line.ask(FRAME.positions, FRAME.cell[0]))
                line.send(EXIT)
                line.is_closed()

        thread = in_background(play)
        assert exit_code(monkeypatch, "--dp-ipi", water, "--once", "--backend", backend, "--control", "off") == 0
        thread.join(PATIENCE)
    np.testing.assert_allclose(replies[0].energy, expected.energy, rtol=1e-10)
    np.testing.assert_allclose(replies[0].forces[0], expected.forces, atol=1e-9)
    log = capsys.readouterr().err
    assert f"water.json is taken as --model graph.pb --unix {name} --log-level debug" in log
    assert "the order of the atoms is that of conf.xyz, where OW is O, HW1 is H, HW2 is H" in log
    assert "atom_type says that H is type 0; the model calls that type O" in log
    assert "note without an effect, as with dp_ipi" in log
    assert "from the coord_file of " in log
    assert "DEBUG" in log
    assert ("evaluated by DeePMD-kit 3.2.0" in log) is (backend == "deepmd")


def test_the_command_line_says_how_loud(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_names(tmp_path)
    water = write(tmp_path, verbose=True)
    assert exit_code(monkeypatch, "--dp-ipi", water, "--log-level", "warning") == 3
    log = capsys.readouterr().err
    assert "model file graph.pb does not exist" in log
    assert "DEBUG" not in log
