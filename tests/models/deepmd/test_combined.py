"""Hybrids, se_e3, loc_frame and tables of pair energies in DeePMD-kit's files: its own numbers, and the way back."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("google.protobuf")

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models import deepmd
from dpserver.models.deepmd import pair_tables
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import potential_of
from dpserver.models.potential import Potential
from tests import structures
from tests.models import tables, test_hybrid, test_pair_table, test_se_e3
from tests.models.deepmd import stored
from tests.models.deepmd.test_deepmd import reference

FILES = ["h.dp", "h.pth", "z.dp", "z.pth", "s.pth", "l.pb", "k.pb"]


@pytest.mark.parametrize("name", FILES)
def test_same_numbers_as_deepmd_kit(name: str) -> None:
    frames, expected = stored.answers(Path(name).stem)
    result = reference(stored.FOLDER / name, frames)
    np.testing.assert_allclose(result.energy, expected["energy"], rtol=1e-12)
    np.testing.assert_allclose(result.atom_energy, expected["atom_energy"], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(result.forces, expected["forces"], rtol=1e-10, atol=1e-12)
    virial = (expected["virial"] + expected["virial"].transpose(0, 2, 1)) / 2
    np.testing.assert_allclose(result.virial, virial, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["h", "z"])
def test_both_kinds_of_file_hold_the_same_parameters(name: str) -> None:
    expected = deepmd.load(stored.FOLDER / f"{name}.dp").state_dict()
    found = deepmd.load(stored.FOLDER / f"{name}.pth").state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(found[key], tensor, rtol=1e-14, atol=1e-15, err_msg=key)


def test_what_is_written_of_a_hybrid_is_what_was_read() -> None:
    read = deepmd.read(stored.FOLDER / "h.dp")["model"]
    written = tree_of(potential_of({"model": deepcopy(read)}))["model"]
    for key in ("type_map", "atom_exclude_types", "pair_exclude_types"):
        assert written[key] == read[key]
    assert_same(written["descriptor"], read["descriptor"], "descriptor")
    assert_same(written["fitting"]["nets"], read["fitting"]["nets"], "nets")
    np.testing.assert_array_equal(written["@variables"]["out_bias"], read["@variables"]["out_bias"])


def test_what_is_written_of_a_table_is_what_was_read() -> None:
    read = deepmd.read(stored.FOLDER / "z.dp")["model"]
    written = tree_of(potential_of({"model": deepcopy(read)}))["model"]
    assert {k: written[k] for k in ("type", "sw_rmin", "sw_rmax", "smin_alpha")} == {
        "type": "zbl", "sw_rmin": 0.3, "sw_rmax": 3.9, "smin_alpha": 0.1,
    }  # fmt: skip
    ours, theirs = (tree["models"][1]["tab"] for tree in (written, read))
    assert_same(ours["@variables"], theirs["@variables"], "tab")
    assert {k: ours[k] for k in ("rmin", "hh", "ntypes", "nspline", "rcut")} == {
        k: theirs[k] for k in ("rmin", "hh", "ntypes", "nspline", "rcut")
    }
    assert written["models"][1]["sel"] == read["models"][1]["sel"]
    assert_same(written["models"][0]["descriptor"], read["models"][0]["descriptor"], "descriptor")


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for k, value in enumerate(theirs):
            assert_same(ours[k], value, f"{where}[{k}]")
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where


def with_types() -> Potential:
    """A table switched with a descriptor that embeds types, which alone the files have a place for."""
    descriptor = {"type": "se_atten", "sel": 70, "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "tebd_dim": 3}
    return test_pair_table.make(descriptor={**descriptor, "attn_layer": 0}, srtab_add_bias=False)


@pytest.mark.parametrize("make", [test_se_e3.make, test_hybrid.make, with_types])
def test_written_and_read_again(make: Any, tmp_path: Path) -> None:
    potential = make()
    if potential.table is not None:
        potential.descriptor.davg.zero_()
        potential.table.bias[0] = 0.25
    deepmd.save(tmp_path / "m.dp", potential)
    again = deepmd.load(tmp_path / "m.dp")
    for name, tensor in potential.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor, err_msg=name)
    frames = structures.tiny()
    np.testing.assert_allclose(again.reference(frames).forces, potential.reference(frames).forces, rtol=1e-12)


def test_what_no_file_has_a_place_for() -> None:
    for potential, expected in (
        (test_pair_table.make(), "a table of pair energies beside another descriptor than se_atten"),
        (test_pair_table.make(entries={"weights": (1.0, 1.0)}), "a sum of a net and a table of pair energies"),
        (test_pair_table.alone(), "a table of pair energies alone"),
    ):
        with pytest.raises(ConfigError, match=f"{expected} cannot be exported"):
            tree_of(potential)


def zbl(**entries: Any) -> dict[str, Any]:
    tree = deepmd.read(stored.FOLDER / "z.dp")
    return {"model": {**tree["model"], **entries}}


def parts(**entries: Any) -> list[dict[str, Any]]:
    net, table = zbl()["model"]["models"]
    return [{**net, **entries}, table]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"models": []}, "it is a combination of ; supported is one of a net and a table"),
        ({"models": [*parts(), parts()[0]]}, "it is a combination of standard, pairtab, standard"),
        ({"models": parts(type_map=["H", "O"])}, "have other species than the whole"),
        ({"models": parts(atom_exclude_types=[1])}, "have atom_exclude_types of their own"),
        ({"type": "linear", "weights": "median"}, "its model.weights is 'median', expected sum, mean or two numbers"),
        ({"type": "linear", "weights": [1.0]}, r"its model.weights is \[1.0\]"),
        ({"sw_rmin": 4.0}, "sw_rmin: must be smaller than sw_rmax"),
        ({"sw_rmin": "a"}, "model.sw_rmin is of type str, expected float"),
        ({"spin": {"use_spin": [True]}}, "its model has spin"),
    ],
)
def test_tables_refused(entries: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelFileError, match=expected):
        potential_of(zbl(**entries))


def test_a_table_of_the_wrong_size_is_refused() -> None:
    tree = deepcopy(zbl())
    variables = tree["model"]["models"][1]["tab"]["@variables"]
    variables["tab_data"] = variables["tab_data"].ravel()[:-4]
    with pytest.raises(ModelFileError, match=r"its model\.models\.tab has \d+ numbers for 2 types and \d+ pieces"):
        potential_of(tree)


def test_a_table_alone() -> None:
    """No net is asked for, and the numbers are those of the table."""
    net, table = zbl()["model"]["models"]
    potential = potential_of({"model": table})
    frame = structures.tiny()
    bias = np.reshape(table["@variables"]["out_bias"], -1)[frame.types]
    expected = tables.energies(frame, table["tab"]["@variables"]["vdata"], 3.9) + bias
    np.testing.assert_allclose(potential.evaluate(frame).atom_energy, expected, rtol=1e-10, atol=1e-11)
    assert pair_tables.kind_of(net) is None


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"list": []}, r"its model\.descriptor\.list has 0 parts, expected 1 to 64"),
        ({"list": [{"type": "dpa2"}]}, "its descriptor is DPA-2, not supported"),
        ({"list": [3]}, r"its model\.descriptor\.list\[0\] is of type int, expected a section"),
        ({"list": [{}]}, r"its model\.descriptor\.list\[0\] lacks the entry 'type'"),
    ],
)
def test_hybrids_refused(section: dict[str, Any], expected: str) -> None:
    tree = deepmd.read(stored.FOLDER / "h.dp")
    tree["model"]["descriptor"] = {"type": "hybrid", **section}
    with pytest.raises(ModelFileError, match=expected):
        potential_of(tree)


def test_an_unknown_option_of_a_part_is_refused() -> None:
    tree = deepmd.read(stored.FOLDER / "h.dp")
    tree["model"]["descriptor"]["list"][1]["something_new"] = 2
    with pytest.raises(ModelFileError, match=r"its model\.descriptor\.list\[1\] has something_new = 2"):
        potential_of(tree)


def test_hybrids_within_hybrids() -> None:
    tree = deepmd.read(stored.FOLDER / "h.dp")
    expected = potential_of(tree)
    descriptor = tree["model"]["descriptor"]
    descriptor["list"] = [{**descriptor, "list": descriptor["list"][:2]}, descriptor["list"][2]]
    found = potential_of(tree)
    for name, tensor in expected.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], tensor, err_msg=name)
