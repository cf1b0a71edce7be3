"""DeePMD-kit's own `.dp` and `.yaml` files: written and read again, and hostile ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("yaml")

import h5py
import yaml

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models.deepmd import neutral
from dpserver.models.deepmd.neutral import read_hdf5, read_yaml, write_hdf5


def write(path: Path, tree: object, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["json"] = tree if isinstance(tree, str) else json.dumps(tree)
        for name, value in datasets.items():
            file[name] = value
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        (read_yaml if path.suffix == ".yaml" else read_hdf5)(path)
    return str(error.value)


TREE = {"model": {"@variables": {"x": np.arange(6.0).reshape(2, 3), "none": None}, "n": [1, {"@variables": {}}]}}


def test_hdf5_there_and_back(tmp_path: Path) -> None:
    with (tmp_path / "m.dp").open("w+b") as stream:
        write_hdf5(stream, TREE)
    found = read_hdf5(tmp_path / "m.dp")
    np.testing.assert_array_equal(found["model"]["@variables"].pop("x"), TREE["model"]["@variables"]["x"])
    assert found == {"model": {"@variables": {"none": None}, "n": [1, {"@variables": {}}]}}


@pytest.mark.parametrize(("name", "reader"), [("h5py", read_hdf5), ("yaml", read_yaml)])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs the package .*: pip install 'dpserver\[deepmd\]'"):
        reader(tmp_path / "m")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("{", "'json' is no JSON"),
        ("[]", "holds a list, expected a section"),
        ("[" * 100_000, "nested too deeply"),
        ({"@variables": {"x": "/nowhere"}}, "dataset /nowhere is missing"),
        ({"@variables": {"x": "/group"}}, "/group is no dataset"),
        ({"@variables": {"x": "/words"}}, "holds no numbers"),
    ],
)
def test_damaged_trees(tmp_path: Path, tree: object, expected: str) -> None:
    path = write(tmp_path / "m.dp", tree, words="water")
    with h5py.File(path, "a") as file:
        file.create_group("group")
    assert expected in refused(path)


def test_an_hdf5_file_of_another_kind(tmp_path: Path) -> None:
    h5py.File(tmp_path / "m.dp", "w").close()
    assert "without the attribute 'json'" in refused(tmp_path / "m.dp")
    (tmp_path / "m.dp").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "cut short or damaged" in refused(tmp_path / "m.dp")


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.arange(4.0).tobytes())
    write(tmp_path / "other.h5", {}, x=np.arange(4.0))
    ways = {"link": h5py.ExternalLink("other.h5", "/x"), "soft": h5py.SoftLink("/link")}
    for name, link in ways.items():
        path = write(tmp_path / f"{name}.dp", {"@variables": {"x": f"/{name}"}})
        with h5py.File(path, "a") as file:
            file[name] = link
        assert "lies in another file" in refused(path)
    path = write(tmp_path / "raw.dp", {"@variables": {"x": "/x"}})
    with h5py.File(path, "a") as file:
        file.create_dataset("x", (4,), "f8", external=[(str(tmp_path / "secret"), 0, 32)])
    assert "lies in another file" in refused(path)
    path = write(tmp_path / "virtual.dp", {"@variables": {"x": "/x"}})
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("x", layout)
    assert "lies in another file" in refused(path)


def test_absurd_sizes_are_not_read(tmp_path: Path) -> None:
    """A dataset of any size takes no room in the file as long as nothing is written to it."""
    path = write(tmp_path / "m.dp", {"@variables": {"x": "/x"}})
    with h5py.File(path, "a") as file:
        file.create_dataset("x", (2**40,), "f8", chunks=(1024,), compression="gzip")
    assert path.stat().st_size < 100_000
    assert "more than 2 GiB" in refused(path)


def test_compressed_datasets_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.dp", {"@variables": {"x": "/x"}})
    with h5py.File(path, "a") as file:
        file.create_dataset("x", data=np.arange(100.0), compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(read_hdf5(path)["@variables"]["x"], np.arange(100.0))


# --- YAML ------------------------------------------------------------------------------------------------------------


def yaml_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "m.yaml").write_text(text)
    return tmp_path / "m.yaml"


def test_yaml_arrays(tmp_path: Path) -> None:
    text = 'a: &x {"@is_variable": true, dtype: float32, value: [[1, 2.5]]}\nb: [*x, 3]\n'
    found = read_yaml(yaml_file(tmp_path, text))
    np.testing.assert_array_equal(found["a"], [[1, 2.5]])
    assert found["a"].dtype == np.float32
    assert found["b"][1] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "holds a list, expected the sections"),
        ("a: [1\n", "no YAML that can be read"),
        ("a: !!python/object/apply:os.system ['exit 3']\n", "no YAML that can be read"),
        ("a: !!python/name:os.system ''\n", "no YAML that can be read"),
        ("a: \x00\n", "no YAML that can be read"),
        ('a: {"@is_variable": true, dtype: object, value: [1]}\n', "array of dtype 'object'"),
        ('a: {"@is_variable": true, dtype: float64}\n', "array of dtype 'float64'"),
        ('a: {"@is_variable": true, dtype: float64, value: [[1], [2, 3]]}\n', "no YAML that can be read"),
        ('a: {"@is_variable": true, dtype: int64, value: [1e400]}\n', "no YAML that can be read"),
        ("a: &x [*x]\n", "more than 50,000,000 values"),
        ("a: {<<: {b: 1}, c: 2}\n", "no YAML that can be read"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(yaml_file(tmp_path, text))


def test_a_billion_laughs(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
    assert "more than 50,000,000 values" in refused(yaml_file(tmp_path, "\n".join(lines)))


def test_the_slow_parser_does_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert neutral.read_yaml(yaml_file(tmp_path, "a: {b: 1}\n")) == {"a": {"b": 1}}
