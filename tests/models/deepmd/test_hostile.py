"""What is wrong with a file is one line, whatever its kind; nothing of it is run, and little memory is taken."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("h5py")
pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")

import h5py

from dpserver.errors import ModelFileError
from dpserver.models import checkpoint, deepmd
from tests.models.deepmd import stored
from tests.models.deepmd.test_graphdef import content, message, node, tensor

FILES = [stored.FOLDER / f"{name}{suffix}" for name in stored.NAMES for suffix in stored.SUFFIXES]
SUFFIXES = stored.SUFFIXES
MEMORY = 200 << 20  # more than a wrong size in a file may take
DEEP = 50_000


def refused(path: Path) -> str:
    """The one line that a user sees, by whichever way the file comes in."""
    with pytest.raises(ModelFileError) as by_load:
        deepmd.load(path)
    with pytest.raises(ModelFileError) as by_checkpoint:
        checkpoint.load(path, device="cpu")
    for error in (by_load, by_checkpoint):
        line = str(error.value)
        assert str(path) in line
        assert line.isprintable()
        assert len(line) < 2000
    return str(by_load.value)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """The peak of this process must not grow by much."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    assert grown < MEMORY, f"{grown >> 20} MiB"


# --- files that want to run something --------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch '{self.trace}'",)


def archive_with(source: Path, target: Path, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip file with some entries replaced, by the ends of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            ends = [data for end, data in changed.items() if entry.filename.endswith(end)]
            new.writestr(entry.filename, ends[0] if ends else old.read(entry))


def armed(suffix: str, path: Path, trace: Path) -> None:
    """A model file of one kind with a bomb in it, in the place where this kind could have one."""
    bomb, source = pickle.dumps(Bomb(trace), protocol=2), stored.FOLDER / f"a{suffix}"
    if suffix == ".pth":
        archive_with(source, path, {"data.pkl": bomb})
    elif suffix == ".pt":
        torch.save({"model": {"_extra_state": {"model_params": Bomb(trace)}}}, path)
    elif suffix == ".yaml":
        path.write_text(f"model: !!python/object/apply:os.system [\"touch '{trace}'\"]\n")
    elif suffix == ".dp":
        with h5py.File(path, "w") as file:
            file.attrs["json"] = json.dumps({"model": {"@variables": {"x": "/x"}}})
            file["x"] = np.void(bomb)
    else:
        path.write_bytes(node("train_attr/training_script", tensor(7, (), message(8, bomb))))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_bomb_goes_off(tmp_path: Path, suffix: str) -> None:
    trace, path = tmp_path / "t", tmp_path / f"m{suffix}"
    armed(suffix, path, trace)
    refused(path)
    assert not trace.exists()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "t")))
    assert (tmp_path / "t").exists()


# --- files that want all memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, suffix: str, entry: str) -> None:
    source, path = stored.FOLDER / f"a{suffix}", tmp_path / f"m{suffix}"
    with zipfile.ZipFile(source) as archive:
        (whole,) = [archive.read(name) for name in archive.namelist() if name.endswith(entry)]
    archive_with(source, path, {entry: whole + bytes(MEMORY)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with little_memory():
        assert "is compressed, which PyTorch does not do" in refused(path)


def test_a_dataset_that_is_nothing_but_zeros(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    with h5py.File(path, "w") as file:
        file.attrs["json"] = json.dumps({"model": {"@variables": {"x": "/x"}}})
        file.create_dataset("x", (3 << 30,), "i1", chunks=(1 << 20,), compression="gzip")
    with little_memory():
        assert "more than 2 GiB" in refused(path)


def test_a_tensor_that_repeats_itself(tmp_path: Path) -> None:
    """A view with strides of 0 has any shape and no numbers of its own."""
    values = torch.load(stored.FOLDER / "a.pt", weights_only=True)
    name = next(name for name in values["model"] if name.endswith("layers.0.matrix"))
    values["model"][name] = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save(values, tmp_path / "m.pt")
    with little_memory():
        assert "with it the model would take more than 2 GiB" in refused(tmp_path / "m.pt")


def rewritten(suffix: str, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A model file whose input is another one."""
    source = stored.FOLDER / f"a{suffix}"
    if suffix == ".dp":
        path.write_bytes(source.read_bytes())
        with h5py.File(path, "a") as file:
            tree = json.loads(file.attrs["json"])
            change(tree["model"])
            del file.attrs["json"]
            file.attrs["json"] = json.dumps(tree)
    elif suffix == ".pt":
        values = torch.load(source, weights_only=True)
        change(values["model"]["_extra_state"]["model_params"])
        torch.save(values, path)
    elif suffix == ".yaml":
        import yaml

        tree = yaml.safe_load(source.read_text())
        change(tree["model"])
        path.write_text(yaml.safe_dump(tree))
    else:
        pytest.fail(f"no way to rewrite a {suffix} file")


ABSURD: dict[str, Callable[[dict[str, Any]], None]] = {
    "wide": lambda model: model["descriptor"].update(neuron=[200_000, 200_000]),
    "many": lambda model: model.update(type_map=[f"X{k}" for k in range(100_000)]),
    "slots": lambda model: model["descriptor"].update(sel=[10**12, 10**12]),
    "axes": lambda model: model["descriptor"].update(axis_neuron=10**12),
}


@pytest.mark.parametrize("suffix", [".dp", ".pt", ".yaml"])
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_not_made(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"m{suffix}"
    rewritten(suffix, path, ABSURD[name])
    with little_memory():
        refused(path)


# --- files that are nested without end -------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [900, DEEP])
def test_a_checkpoint_nested_without_end(tmp_path: Path, depth: int) -> None:
    """The pickle is changed by hand: pickle itself breaks down on such a list."""
    source = stored.FOLDER / "a.pt"
    with zipfile.ZipFile(source) as archive:
        data = archive.read("a/data.pkl")
    begin = re.search(rb"model_params(q.|r....)}(q.|r....)\(", data, re.DOTALL)
    assert begin is not None
    entry = b"X" + (8).to_bytes(4, "little") + b"surprise" + b"]" * depth + b"a" * (depth - 1)
    archive_with(source, tmp_path / "m.pt", {"data.pkl": data[: begin.end()] + entry + data[begin.end() :]})
    assert ("nested too deeply" if depth == DEEP else "its model has surprise = [[[") in refused(tmp_path / "m.pt")


@pytest.mark.parametrize("depth", [900, DEEP])
def test_inputs_nested_without_end(tmp_path: Path, depth: int) -> None:
    text = '{"model": {"surprise": ' + "[" * depth + "]" * depth + "}}"
    with h5py.File(tmp_path / "m.dp", "w") as file:
        file.attrs.create("json", text, dtype=h5py.string_dtype()) if depth > 900 else file.attrs.update(json=text)
    refused(tmp_path / "m.dp")
    (tmp_path / "m.yaml").write_text("model:\n  surprise: " + "[" * depth + "]" * depth + "\n")
    refused(tmp_path / "m.yaml")
    graph = node("train_attr/training_script", tensor(7, (), message(8, text.encode())))
    (tmp_path / "m.pb").write_bytes(graph)
    refused(tmp_path / "m.pb")


# --- damaged ones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_any_damage_is_refused_or_does_no_harm(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data, path = file.read_bytes(), tmp_path_factory.mktemp("damaged") / file.name

    @settings(max_examples=20, deadline=None)
    @given(
        start=st.integers(0, len(data)),
        n_lost=st.one_of(st.just(0), st.integers(0, 40), st.integers(0, len(data))),
        added=st.one_of(st.binary(max_size=8), st.just(bytes(300))),
    )
    def check(start: int, n_lost: int, added: bytes) -> None:
        path.write_bytes(data[:start] + added + data[start + n_lost :])
        with contextlib.suppress(ModelFileError):
            model = deepmd.load(path)
            assert all(np.isfinite(t.numpy()).all() for t in model.state_dict().values())

    check()


@pytest.mark.parametrize("dtype", ["<f8", "<i8"])
def test_numbers_that_are_none(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "m.pb").write_bytes(node("x", tensor(2, (3,), content([1, 2, 3, 4], dtype))))
    refused(tmp_path / "m.pb")
