"""What a path stands for: directories, HDF5 files, links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import fingerprint, read_system, read_systems
from dpserver.train.formats.sources import find_systems, resolve
from tests.train.datasets import WATER, to_hdf5, write_mixed, write_npy

# --- directories -------------------------------------------------------------------------------------------------


def test_systems_within_systems_and_behind_links(tmp_path: Path) -> None:
    write_npy(tmp_path / "elsewhere/a", 1)
    write_npy(tmp_path / "data/b", 2)
    write_npy(tmp_path / "data/b/more/c", 3)
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    found = find_systems(tmp_path / "data")
    assert [str(s.path.relative_to(tmp_path / "data")) for s in found] == ["b", "b/more/c", "linked/a"]
    assert [s.n_frames for s in read_systems([tmp_path / "data"], WATER)] == [2, 3, 1]


def test_files_behind_links(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    (tmp_path / "a/set.000/force.npy").rename(tmp_path / "force.npy")
    (tmp_path / "a/set.000/force.npy").symlink_to(tmp_path / "force.npy")
    assert read_system(tmp_path / "a", WATER).forces is not None


def test_patterns_choose_directories(tmp_path: Path) -> None:
    for name in ("run_1", "run_2", "old/run_3", "rest"):
        write_npy(tmp_path / name, 1)
    names = [s.path.name for s in find_systems(tmp_path, ["run_*"])]
    assert names == ["run_3", "run_1", "run_2"]
    assert [s.path.name for s in find_systems(tmp_path, ["old/*", "rest"])] == ["run_3", "rest"]
    with pytest.raises(DataError, match=r"no system in .* that matches new_\* or x"):
        find_systems(tmp_path, ["new_*", "x"])
    with pytest.raises(DataError, match="rglob_patterns choose among directories, and this is none"):
        find_systems(tmp_path / "run_1/type.raw", ["*"])


def test_what_does_not_exist(tmp_path: Path) -> None:
    for path in ("nothing", "nothing.hdf5#/a", "nothing.xyz"):
        with pytest.raises(DataError, match=f"the data set .*{path} does not exist; expected a DeePMD npy directory"):
            find_systems(str(tmp_path / path))


def test_paths_of_an_input_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "input"
    (folder / "beside").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (folder / "data.hdf5").touch()
    (folder / "OUTCAR").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("here", folder) == "here"
    assert resolve("beside", folder) == str(folder / "beside")
    assert resolve("nowhere", folder) == str(folder / "nowhere")
    assert resolve("/absolute", folder) == "/absolute"
    assert resolve("data.hdf5#/a/b", folder) == f"{folder}/data.hdf5#/a/b"
    assert resolve("vasp/outcar:OUTCAR", folder) == f"vasp/outcar:{folder}/OUTCAR"
    assert resolve("vasp/outcar:here", folder) == "vasp/outcar:here"
    assert resolve("vasp/outcar:/absolute", folder) == "vasp/outcar:/absolute"


# --- HDF5 --------------------------------------------------------------------------------------------------------


def test_an_hdf5_file_is_the_directory_it_was_made_of(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "x/a", 3, sets=2, atomic_dipole=np.ones((3, 3)), fparam=np.ones((3, 2)))
    write_npy(tmp_path / "x/b/c", 2, is_open=True, seed=1)
    write_mixed(tmp_path / "x/b/m", 4, [([0, 2], [0, 1]), ([3], [1])])
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        for name in ("a", "b/c", "b/m"):
            to_hdf5(tmp_path / "x" / name, file.create_group(name))
    expected = read_systems([tmp_path / "x"], WATER)
    for path in (tmp_path / "all.hdf5", f"{tmp_path}/all.hdf5#", f"{tmp_path}/all.hdf5#/"):
        found = read_systems([path], WATER)
        assert [s.name for s in found] == [f"{tmp_path}/all.hdf5#/{name}" for name in ("a", "b/c", "b/m")]
        assert fingerprint(found) == fingerprint(expected)
    assert fingerprint(read_systems([f"{tmp_path}/all.hdf5#/b"], WATER)) == fingerprint(expected[1:])
    assert fingerprint([read_system(f"{tmp_path}/all.hdf5#b/m/", WATER)]) == fingerprint(expected[2:])


def test_hdf5_files_with_words_of_any_length(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file)
        del file["type_map.raw"]
        file["type_map.raw"] = ["O", "H"]
    assert fingerprint([read_system(tmp_path / "all.h5", WATER)]) == fingerprint([read_system(tmp_path / "a", WATER)])


def test_compressed_and_chunked(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    arrays = write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file)
        for name, how in (("force", {"compression": "gzip", "shuffle": True}), ("coord", {"compression": "lzf"})):
            del file[f"set.000/{name}.npy"]
            file.create_dataset(f"set.000/{name}.npy", data=arrays[name], **how)
    assert fingerprint([read_system(tmp_path / "all.h5", WATER)]) == fingerprint([read_system(tmp_path / "a", WATER)])


def test_groups_that_are_not_there(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file.create_group("one/system"))
        file.create_group("empty")
    with pytest.raises(DataError, match=r"all\.h5 has no group /other; it holds empty, one"):
        find_systems(f"{tmp_path}/all.h5#/other")
    with pytest.raises(DataError, match=r"all\.h5 has no group /one/system/type\.raw; it holds"):
        find_systems(f"{tmp_path}/all.h5#/one/system/type.raw")
    with pytest.raises(DataError, match=r"no system in .*all\.h5#/empty: expected groups that hold type\.raw"):
        find_systems(f"{tmp_path}/all.h5#/empty")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"text\.h5 is not an HDF5 file, so it has no /a"):
        find_systems(f"{tmp_path}/text.h5#/a")


def test_nothing_leads_out_of_an_hdf5_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        to_hdf5(tmp_path / "a", file.create_group("a"))

    def made(name: str) -> tuple[Path, h5py.File]:
        path = tmp_path / f"{name}.h5"
        file = h5py.File(path, "w")
        to_hdf5(tmp_path / "a", file.create_group("s"))
        return path, file

    path, file = made("group")
    with file:
        file["t"] = h5py.ExternalLink("secret.h5", "/a")
    with pytest.raises(DataError, match=r"group\.h5#/t: it is a link to another file, secret\.h5, which is not"):
        read_systems([path], WATER)

    path, file = made("array")
    with file:
        del file["s/set.000/force.npy"]
        file["s/set.000/force.npy"] = h5py.ExternalLink("secret.h5", "/a/set.000/force.npy")
    with pytest.raises(DataError, match=r"array\.h5#/s/set\.000/force\.npy: it is a link to another file, secret\.h5"):
        read_systems([path], WATER)

    path, file = made("twice")
    with file:
        del file["s/set.000"]
        file["s/out"] = h5py.ExternalLink("secret.h5", "/a")
        file["s/set.000"] = h5py.SoftLink("/s/out/set.000")
    with pytest.raises(DataError, match=r"secret\.h5, which is not followed"):
        read_systems([path], WATER)

    path, file = made("virtual")
    with file:
        layout = h5py.VirtualLayout((2, 9), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a/set.000/force.npy", (2, 9))
        del file["s/set.000/force.npy"]
        file.create_virtual_dataset("s/set.000/force.npy", layout)
    with pytest.raises(DataError, match=r"cannot read .*force\.npy: its numbers lie in another file"):
        read_systems([path], WATER)

    path, file = made("external")
    with file:
        del file["s/set.000/force.npy"]
        outside = [(str(tmp_path / "a/set.000/force.npy"), 128, 2 * 9 * 8)]
        file.create_dataset("s/set.000/force.npy", (2, 9), "f8", external=outside)
    with pytest.raises(DataError, match=r"cannot read .*force\.npy: its numbers lie in another file"):
        read_systems([path], WATER)


def test_links_within_an_hdf5_file_are_followed_once(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file.create_group("a"))
        file["again"] = h5py.SoftLink("/a")
        file["a/up"] = file["/"]
        file["nowhere"] = h5py.SoftLink("/b")
    assert len(find_systems(tmp_path / "all.h5")) == 1


def test_an_array_that_promises_the_moon(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file)
        del file["set.000/coord.npy"]
        file.create_dataset("set.000/coord.npy", (10**10, 9), "f8", chunks=(1000, 9), compression="gzip")
    with pytest.raises(
        DataError, match=r"coord\.npy: its shape \(10000000000, 9\) promises more numbers than the file"
    ):
        read_systems([tmp_path / "all.h5"], WATER)


def test_objects_in_an_hdf5_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        to_hdf5(tmp_path / "a", file)
        del file["set.000/energy.npy"]
        file["set.000/energy.npy"] = ["one", "two"]
    with pytest.raises(DataError, match=r"energy\.npy: expected real numbers, got object"):
        read_systems([tmp_path / "all.h5"], WATER)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_an_hdf5_file_cut_short(tmp_path: Path, part: float) -> None:
    h5py = pytest.importorskip("h5py")
    write_npy(tmp_path / "a", 50)
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        to_hdf5(tmp_path / "a", file)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=r"all\.h5 cannot be read as an HDF5 file: "):
        read_systems([path], WATER)
