"""What dpdata reads, against ASE's reading of the same files and against the numbers in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import fingerprint, read_system, read_systems
from tests.train.datasets import WATER, write_mixed, write_npy


@pytest.fixture(autouse=True)
def _dpdata() -> None:
    pytest.importorskip("dpdata")


@pytest.fixture
def outcar() -> Path:
    """An OUTCAR that comes with ASE."""
    ase = pytest.importorskip("ase")
    path = Path(ase.__file__).parent / "test/testdata/vasp/OUTCAR_example_1"
    if not path.is_file():
        pytest.skip("ASE is installed without its test data")
    return path


def write_raw(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """DeePMD's old text format beside a npy directory."""
    for name, values in arrays.items():
        np.savetxt(folder / f"{name}.raw", values.reshape(len(values), -1), fmt="%.18e")


def test_vasp_is_what_ase_reads(outcar: Path) -> None:
    (atoms,) = pytest.importorskip("ase.io").read(outcar, ":", format="vasp-out")
    found = read_system(f"vasp/outcar:{outcar}", ("H", "Ni"))
    assert found.name == f"vasp/outcar:{outcar}"
    assert found.labels.keys() == {"energy", "forces", "virial"}
    np.testing.assert_array_equal(found.frames.types, [1] * 18)
    np.testing.assert_allclose(found.frames.positions, atoms.positions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.frames.cell[0], atoms.cell.array, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.energy, atoms.get_potential_energy(force_consistent=True))
    np.testing.assert_allclose(found.forces, atoms.get_forces(), rtol=0, atol=1e-12)
    assert found.virial is not None
    np.testing.assert_allclose(found.virial[0], -atoms.get_volume() * atoms.get_stress(voigt=False), rtol=1e-5)


def test_raw_text(tmp_path: Path) -> None:
    arrays = write_npy(tmp_path / "a", 3)
    write_raw(tmp_path / "a", arrays)
    found, expected = read_system(f"deepmd/raw:{tmp_path}/a", WATER), read_system(tmp_path / "a", WATER)
    assert fingerprint([found]) == fingerprint([expected])


def test_a_missing_virial_is_no_virial(tmp_path: Path) -> None:
    write_raw(tmp_path / "a", write_npy(tmp_path / "a", 3, virial=False))
    found = read_system(f"deepmd/raw:{tmp_path}/a", WATER)
    assert found.virial is None
    assert found.forces is not None


def test_open_boundaries(tmp_path: Path) -> None:
    write_raw(tmp_path / "a", write_npy(tmp_path / "a", 3, is_open=True))
    found = read_system(f"deepmd/raw:{tmp_path}/a", WATER)
    assert not found.frames.pbc.any()
    assert not found.frames.cell.any()


def test_one_file_for_every_calculation(tmp_path: Path) -> None:
    for k in range(3):
        write_raw(tmp_path / f"run_{k}/a", write_npy(tmp_path / f"run_{k}/a", k + 1, seed=k))
    found = read_systems([f"deepmd/raw:{tmp_path}/run_*/a"], WATER)
    assert [s.n_frames for s in found] == [1, 2, 3]
    with pytest.raises(DataError, match=r"no file matches .*/walk_\*/a"):
        read_systems([f"deepmd/raw:{tmp_path}/walk_*/a"], WATER)


QUIP = """2
Lattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3:Z:I:1:force:R:3 energy=-1.5 virial="1 2 3 2 4 5 3 5 6"
H 0.0 0.0 0.0 1 0.1 0.2 0.3
O 1.0 0.0 0.0 8 -0.1 -0.2 -0.3
1
Lattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3:Z:I:1:force:R:3 energy=-2.5 virial="1 0 0 0 1 0 0 0 1"
O 0.5 0.0 0.0 8 0.0 0.0 0.0
"""


def test_a_format_for_many_systems(tmp_path: Path) -> None:
    (tmp_path / "gap.xyz").write_text(QUIP)
    found = read_system(f"quip/gap/xyz:{tmp_path}/gap.xyz", WATER)
    assert found.energy is not None
    np.testing.assert_array_equal(found.counts, [2, 1])
    np.testing.assert_array_equal(found.energy, [-1.5, -2.5])
    assert found.forces is not None
    np.testing.assert_allclose(found.forces[found.frames.types == 1], [[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(found.virial, [[[1, 2, 3], [2, 4, 5], [3, 5, 6]], np.eye(3)])


def test_what_is_read_here_needs_no_dpdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpdata", None)
    write_npy(tmp_path / "x/a", 3)
    write_mixed(tmp_path / "x/b", 5, [([0, 1], [1, 0]), ([0, 1, 2], [1, 0, 1])])
    expected = fingerprint(read_systems([tmp_path / "x"], WATER))
    for kind in ("deepmd/npy", "deepmd/npy/mixed"):
        assert fingerprint(read_systems([f"{kind}:{tmp_path}/x"], WATER)) == expected


def test_formats_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dpdata knows no format vasp/outcarr; did you mean vasp/outcar, "):
        read_system(f"vasp/outcarr:{tmp_path}", WATER)
    with pytest.raises(DataError, match="dpdata knows no format zzz; it knows 3dmol, abacus"):
        read_system(f"zzz:{tmp_path}", WATER)


def test_what_dpdata_cannot_read(tmp_path: Path, outcar: Path) -> None:
    with pytest.raises(DataError, match=r"the data set .*nothing does not exist"):
        read_system(f"vasp/outcar:{tmp_path}/nothing", WATER)
    with pytest.raises(DataError, match="dpdata reads no energies from this format, only structures"):
        read_system(f"vasp/poscar:{outcar}", WATER)
    with pytest.raises(DataError, match=r"dpdata cannot read .* as vasp/xml: ParseError: syntax error") as caught:
        read_system(f"vasp/xml:{outcar}", WATER)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="dpdata finds no frame with an energy in it"):
        read_system(f"cp2k/output:{outcar}", WATER)
    with pytest.raises(DataError, match="species Ni is not among the model's: O, H"):
        read_system(f"vasp/outcar:{outcar}", WATER)


def test_without_dpdata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpdata", None)
    with pytest.raises(DataError, match=r"reading vasp/outcar:OUTCAR needs dpdata: pip install 'dpserver\[dpdata\]'"):
        read_system("vasp/outcar:OUTCAR", WATER)
