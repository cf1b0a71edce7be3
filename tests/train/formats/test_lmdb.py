"""LMDB data sets, written record by record and by dpdata."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import fingerprint, read_system
from dpserver.train.formats.sources import find_systems
from tests.train.datasets import CELL, WATER, write_npy


@pytest.fixture(autouse=True)
def _libraries() -> None:
    pytest.importorskip("lmdb")
    pytest.importorskip("msgpack")


def packed(array: Any) -> dict[str, Any]:
    values = np.asarray(array)
    return {"type": str(values.dtype), "shape": list(values.shape), "data": values.tobytes()}


def frame(n_atoms: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A record with O and H in turn."""
    rng = np.random.default_rng(seed)
    return {
        "coords": packed(rng.normal(size=(n_atoms, 3))),
        "cells": packed(CELL),
        "atom_types": packed(np.arange(n_atoms, dtype=np.int32) % 2),
        "energies": float(rng.normal()),
        "forces": packed(rng.normal(size=(n_atoms, 3))),
        **more,
    }


def write(path: Path, frames: list[dict[str, Any]], **metadata: Any) -> Path:
    import lmdb
    import msgpack

    about = {"nframes": len(frames), "frame_idx_fmt": "06d", "type_map": list(WATER), **metadata}
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"__metadata__", msgpack.packb(about, use_bin_type=True))
        for k, record in enumerate(frames):
            transaction.put(f"{k:06d}".encode(), msgpack.packb(record, use_bin_type=True))
    return path


def unpacked(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(value["data"], value["type"]).reshape(value["shape"])


@pytest.mark.parametrize("name", ["all.lmdb", "all"])
def test_frames_of_any_size(tmp_path: Path, name: str) -> None:
    records = [frame(3, 1), frame(1, 2), frame(4, 3)]
    path = write(tmp_path / name, records)
    assert [str(s) for s in find_systems(path)] == [str(path)]
    found = read_system(path, ("H", "Xe", "O"))
    np.testing.assert_array_equal(found.counts, [3, 1, 4])
    np.testing.assert_array_equal(found.frames.types, [2, 0, 2, 2, 2, 0, 2, 0])
    np.testing.assert_array_equal(found.energy, [r["energies"] for r in records])
    np.testing.assert_array_equal(found.frames.positions, np.concatenate([unpacked(r["coords"]) for r in records]))
    np.testing.assert_array_equal(found.forces, np.concatenate([unpacked(r["forces"]) for r in records]))
    np.testing.assert_array_equal(found.frames.cell, [CELL] * 3)
    assert found.frames.pbc.all()


def test_labels_and_places_without_an_atom(tmp_path: Path) -> None:
    types = np.array([0, -1, 1])
    record = frame(
        3,
        atom_types=packed(types),
        fparam=packed([1.0, 2.0]),
        aparam=packed(np.arange(6.0).reshape(3, 2)),
        atomic_dipole=packed(np.arange(9.0)),
        virials=packed(np.arange(9.0)),
        find_virial=0.0,
    )
    found = read_system(write(tmp_path / "all.lmdb", [record]), WATER)
    np.testing.assert_array_equal(found.frames.positions, unpacked(record["coords"])[[0, 2]])
    np.testing.assert_array_equal(found.frames.fparam, [[1.0, 2.0]])
    np.testing.assert_array_equal(found.frames.aparam, [[0.0, 1.0], [4.0, 5.0]])
    np.testing.assert_array_equal(found.atom_dipole, [[0, 1, 2], [6, 7, 8]])
    assert found.virial is None


@pytest.mark.parametrize("more", [{"nopbc": True}, {"cells": packed(np.zeros((3, 3)))}])
def test_open(tmp_path: Path, more: dict[str, Any]) -> None:
    found = read_system(write(tmp_path / "all.lmdb", [frame(2, **more)]), WATER)
    assert not found.frames.pbc.any()
    assert not found.frames.cell.any()


def test_as_dpdata_writes_it(tmp_path: Path) -> None:
    dpdata = pytest.importorskip("dpdata")
    write_npy(tmp_path / "a", 3)
    write_npy(tmp_path / "b", 2, types=[0, 1, 1, 0], seed=1)
    systems = [dpdata.LabeledSystem(str(tmp_path / name), fmt="deepmd/npy") for name in ("a", "b")]
    dpdata.MultiSystems(*systems).to("deepmd/lmdb", str(tmp_path / "all.lmdb"))
    found = read_system(tmp_path / "all.lmdb", WATER)
    a, b = (read_system(tmp_path / name, WATER) for name in ("a", "b"))
    assert fingerprint([found.subset(range(3))]) == fingerprint([a])
    assert fingerprint([found.subset([3, 4])]) == fingerprint([b])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"forces": packed(np.zeros((2, 3)))}, r"frame 1, force: expected 3 × 3 numbers, got shape \(2, 3\)"),
        (
            {"atom_types": packed(np.array([0, 1, 2]))},
            "frame 1, atom_types: expected one integer from 0 to 1 for each atom",
        ),
        ({"atom_types": None}, "frame 1, atom_types: expected one integer"),
        ({"energies": "much"}, "frame 1, energy: expected real numbers"),
        ({"forces": {"type": "O", "data": b"12345678"}}, "frame 1, force: no array: expected numbers, got object"),
        ({"forces": {"type": "nonsense", "data": b""}}, "frame 1, force: no array: "),
        ({"forces": {"type": "f8", "shape": [3, 3], "data": b"123"}}, "frame 1, force: no array: "),
        ({"virials": packed(np.zeros(9))}, "1 of 2 frames have virial"),
        ({"fparam": packed([1.0])}, "must have the same number of parameters fparam"),
    ],
)
def test_records_that_do_not_fit(tmp_path: Path, more: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_system(write(tmp_path / "all.lmdb", [frame(3), frame(3, **more)]), WATER)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"nframes": 3}, "frame 2 is missing"),
        ({"nframes": "2"}, "expected the number nframes, got '2'"),
        ({"nframes": 0}, "holds no frame"),
        ({"frame_idx_fmt": "Q"}, "'Q' is no format of a number"),
        ({"frame_idx_fmt": "9999d"}, "'9999d' is no format of a number"),
        ({"frame_idx_fmt": ".3f"}, r"'\.3f' is no format of a number"),
        ({"type_map": 7}, "expected a list of names as type_map, got 7"),
        ({"type_map": ["O", 1]}, r"expected a list of names as type_map, got \['O', 1\]"),
        ({"type_map": {"O": 0}}, "expected a list of names as type_map"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, metadata: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_system(write(tmp_path / "all.lmdb", [frame(3), frame(3)], **metadata), WATER)


def cuts(path: Path) -> Iterator[int]:
    size = path.stat().st_size
    yield from (0, 100, 5000, size - 4096, size - 1)


def test_a_data_set_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "all.lmdb", [frame(200, k) for k in range(9)])
    content = (path / "data.mdb").read_bytes()
    for n_bytes in cuts(path / "data.mdb"):
        (path / "data.mdb").write_bytes(content[:n_bytes])
        with pytest.raises(
            DataError, match=r"all\.lmdb(/data\.mdb: expected \d+ bytes| cannot be read as an LMDB data set)"
        ):
            read_system(path, WATER)


def test_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "all.lmdb", [frame(3)])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"needs lmdb and msgpack: pip install 'dpserver\[dpdata\]'"):
        read_system(path, WATER)
