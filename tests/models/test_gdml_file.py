"""Files of the sgdml package, whole, damaged and hostile."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.errors import ModelFileError
from dpserver.models import memory
from dpserver.models.gdml_file import GDMLFile, recognises, refuse
from tests.models import gdml_models


class Bomb:
    """What must not happen."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


def test_what_a_file_holds(tmp_path: Path) -> None:
    path = gdml_models.write(tmp_path / "w.npz", lattice=np.diag([10.0, 20.0, 30.0]), e_unit=np.bytes_("kcal/mol"))
    assert recognises(path)
    file = GDMLFile.read(path)
    assert (file.symbols, file.n_train, file.n_perms) == (("O", "H", "H"), 12, 2)
    assert file.about["e_unit"] == "kcal/mol"
    assert file.lattice is not None
    np.testing.assert_array_equal(file.lattice, np.diag([10.0, 20.0, 30.0]))
    assert set(file.arrays) == {
        "type", "z", "R_desc", "R_d_desc_alpha", "c", "std", "sig", "perms", "tril_perms_lin"
    }  # fmt: skip
    nearest, farthest = file.distances()
    assert (nearest <= farthest).all()
    assert (nearest[0], farthest[0]) == (nearest[1], farthest[1])  # both bonds, which the permutation exchanges


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "d"}, "it is a data set, which `sgdml train` makes a model of"),
        ({"type": "t"}, "it is a training task"),
        ({"type": "x"}, "it is of the type 'x'"),
        ({"type": 3}, "its type is no text"),
        ({"type": "m" * 1000}, "its type is a text of 1000 characters"),
        ({"std": None}, "it lacks std"),
        ({"r_unit": None}, r"it does not say its unit, r_unit; .*r_unit='Ang'"),
        ({"e_unit": None}, r"it does not say its unit, e_unit; .*e_unit='kcal/mol'"),
        ({"e_unit": "furlong"}, "its unit e_unit is 'furlong'; expected one of ev, "),
        ({"z": np.array([8, 1, 200])}, "its z is no list of 2 to 1000 elements"),
        ({"z": np.array([8.0, 1.0, 1.0])}, "its z holds no whole numbers"),
        ({"z": np.array([8])}, "its z is no list"),
        ({"c": np.nan}, "its c holds numbers that are not finite"),
        ({"c": np.array([1.0])}, r"its c has the shape \(1,\), expected \(\)"),
        ({"sig": 0}, "its R_desc, sig or std is not above 0"),
        ({"R_desc": np.ones((4, 12))}, r"its R_desc has the shape \(4, 12\), expected \(3, 12\)"),
        ({"R_desc": np.ones((3, 0))}, "its R_desc has the shape"),
        ({"R_d_desc_alpha": np.ones((3, 12))}, r"its R_d_desc_alpha has the shape \(3, 12\)"),
        ({"alphas_E": np.ones(5)}, r"its alphas_E has the shape \(5,\), expected \(12,\)"),
        ({"perms": np.array([[0, 1, 2], [0, 1, 1]])}, "its perms are no permutations of its atoms"),
        ({"perms": np.array([[0, 1, 2], [1, 0, 2]])}, "its perms exchange different elements"),
        ({"tril_perms_lin": np.array([0, 4, 1, 3, 2, 600])}, "its tril_perms_lin are not those of its perms"),
        ({"tril_perms_lin": np.arange(6)}, "its tril_perms_lin are not those of its perms"),
        ({"tril_perms_lin": np.arange(6, dtype=np.uint8)}, "its tril_perms_lin holds numbers of the type uint8, too"),
        ({"tril_perms_lin": np.arange(7)}, r"its tril_perms_lin has the shape \(7,\), expected \(6,\)"),
        ({"R_desc": np.ones((3, 12), dtype=np.float16)}, "its R_desc holds numbers of the type float16, too coarse"),
        ({"R_d_desc_alpha": np.ones((12, 3), dtype=np.uint8)}, "its R_d_desc_alpha holds numbers of the type uint8"),
        ({"dataset_name": "x" * 100_000}, "its dataset_name is a text of 400000 bytes"),
        ({"lattice": np.zeros((3, 3))}, "its lattice spans no volume"),
        ({"z": np.array([8, "H", None], dtype=object)}, "its z holds objects, .* could run code"),
        ({"R_desc": np.array(Bomb(), dtype=object)}, "its R_desc holds objects, .* could run code"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = gdml_models.write(tmp_path / "w.npz", **changes)
    with pytest.raises(ModelFileError, match=message) as error:
        GDMLFile.read(path)
    assert str(error.value).startswith(f"{path} is no sGDML model that can be used: ")
    assert "\n" not in str(error.value)
    assert not Bomb.exploded


def rewritten(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of an entry."""
    with zipfile.ZipFile(path) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, content in {**entries, name: data}.items():
            new.writestr(entry, content)


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((10**9, 10**9)), "its R_desc is not as long as it says"),
        (header((10**400,)), "its R_desc is not as long as it says"),
        (header((0, 10**400)), "its R_desc has the shape"),
        (header((-3, 4)) + bytes(96), "its R_desc is not as long as it says"),
        (header((3, 12)) + bytes(8), "its R_desc is not as long as it says"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "its R_desc is no array"),
        (pickle.dumps(Bomb()), "its R_desc is no array"),
        (b"", "its R_desc is no array"),
    ],
)
def test_arrays_that_lie(data: bytes, message: str, tmp_path: Path) -> None:
    path = gdml_models.write(tmp_path / "w.npz")
    rewritten(path, "R_desc.npy", data)
    with pytest.raises(ModelFileError, match=message):
        GDMLFile.read(path)
    assert not Bomb.exploded


def test_archives_that_are_damaged(tmp_path: Path) -> None:
    path = gdml_models.write(tmp_path / "w.npz")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:300] + bytes(64) + whole[364:], b"", b"PK nothing"):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"w\.npz (is cut short or damaged|is no sGDML model)"):
            GDMLFile.read(path)
    path.unlink()
    with pytest.raises(ModelFileError, match="does not exist"):
        GDMLFile.read(path)


def test_archives_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, **{f"a{k}": np.zeros(1) for k in range(300)})
    with pytest.raises(ModelFileError, match="it holds more than 200 arrays or 4 GB"):
        GDMLFile.read(path)


def test_a_file_that_the_memory_does_not_hold_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gdml_models.write(tmp_path / "w.npz")
    needed = 24 * (3 + 36 + 36 + 6 + 6 + 3)  # z, R_desc, R_d_desc_alpha, perms, tril_perms_lin, and three numbers
    monkeypatch.setattr(memory, "memory_left", lambda: needed + 12 * 24)  # alphas_E, if it has them
    GDMLFile.read(path)
    monkeypatch.setattr(memory, "memory_left", lambda: needed - 1)
    with pytest.raises(ModelFileError, match=r"w\.npz is too large: reading this sGDML model takes about"):
        GDMLFile.read(path)


def test_where_it_cannot_be_used(tmp_path: Path) -> None:
    path = gdml_models.write(tmp_path / "w.npz")
    told = r"which dpserver serves \(dpserver --model \S+\) and shows \(dpserver info\)"
    with pytest.raises(ModelFileError, match=told):
        refuse(path)
    (tmp_path / "w.pt").write_bytes(b"PK")
    refuse(tmp_path / "w.pt")
