"""TorchScript archives: what hostile ones try, and that nothing comes of it."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.errors import ModelFileError
from dpserver.models import deepmd
from dpserver.models.deepmd.archive import read_archive
from tests.models.deepmd import stored

ALL = re.compile(".*")
MODEL = stored.FOLDER / "r.pth"


def entries() -> dict[str, bytes]:
    with zipfile.ZipFile(MODEL) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, changed: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The stored archive with other entries; those that are None are left out."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**entries(), **changed}.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        read_archive(path, ALL)
    return str(error.value)


def script(module: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants people to leave TorchScript
        torch.jit.save(torch.jit.script(module), path)


class Leaf(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("view", torch.arange(12, dtype=torch.int32).reshape(3, 4).t()[1:, 1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Tree(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.number = "water", 3
        self.leaves = torch.nn.ModuleList([Leaf(), Leaf()])
        self.register_buffer("empty", torch.zeros(0, 4, dtype=torch.float64))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float16))
        self.register_buffer("flag", torch.tensor([True, False]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for leaf in self.leaves:
            x = leaf(x)
        return x


def test_reads_what_torch_writes(tmp_path: Path) -> None:
    module = Tree()
    with torch.no_grad():
        module.leaves[1].weight *= -1
    script(module, tmp_path / "m.pth")
    found = read_archive(tmp_path / "m.pth", ALL)
    expected = module.state_dict()
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.tensors[name].reshape(tensor.shape), tensor.numpy(), err_msg=name)
        assert found.tensors[name].dtype == tensor.numpy().dtype
    assert (found.attributes["text"], found.attributes["number"]) == ("water", 3)
    assert read_archive(tmp_path / "m.pth", re.compile("scalar")).tensors.keys() == {"scalar"}


# --- pickles that want to run something ------------------------------------------------------------------------------


class Bomb:
    """What unpickling it runs."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_bomb_does_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "was here"
    bomb = pickle.dumps(Bomb(os.system, f"touch '{trace}'"), protocol=protocol)
    message = refused(write(tmp_path / "m.pth", {"r/data.pkl": bomb}))
    assert not trace.exists()
    assert "refers to posix.system" in message or "instruction" in message


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("os", "system"),
        ("torch", "load"),
        ("torch.jit._pickle", "os"),
        ("torch._utils", "os"),
        ("collections", "Counter"),
        ("__torch__x", "y"),
        ("torch.DoubleStorage", "__class__"),
    ],
)
def test_names_are_never_looked_up(tmp_path: Path, module: str, name: str) -> None:
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")R."
    assert f"refers to {module}.{name}" in refused(write(tmp_path / "m.pth", {"r/data.pkl": data}))


GLOBAL_RECORD = b"c__torch__.m\nM\n"
TOKEN = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02N.",
        b"\x80\x02" + GLOBAL_RECORD + b".",  # the class itself
        b"\x80\x02" + GLOBAL_RECORD + b")\x81N}b.",  # set on None
        b"\x80\x02" + GLOBAL_RECORD + b")\x81K\x05b.",  # a state that is no dict
        b"\x80\x02" + GLOBAL_RECORD + b"}b.",  # set on the class
        b"\x80\x02" + GLOBAL_RECORD + b"K\x05\x85R.",  # called with an argument
        b"\x80\x02" + TOKEN + b"}X\x04\x00\x00\x00namessb.",
        b"\x80\x02" + TOKEN + b")R.",
        b"\x80\x02" + TOKEN + b"K\x01K\x02K\x03\x87R.",
        b"\x80\x02ctorch\nDoubleStorage\n)R.",
        b"\x80\x02" + b"(" * 2000 + b".",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02]]q\x00a.",
        b"\x80\x02)" + b"\x85" * 100_000 + b"}" + b".",
    ],
)
def test_nonsense_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "data.pkl" in refused(write(tmp_path / "m.pth", {"r/data.pkl": data}))


def test_tokens_stay_as_they_are(tmp_path: Path) -> None:
    """A pickle may not change what the next one meets: here it would set attributes of what rebuilds tensors."""
    data = b"\x80\x02" + TOKEN + b"}X\x0c\x00\x00\x00__defaults__Nsb" + b"."
    assert "sets attributes of _rebuild_tensor_v2" in refused(write(tmp_path / "m.pth", {"r/data.pkl": data}))
    assert deepmd.load(MODEL)


def test_the_memo_cannot_be_made_to_fill_the_memory(tmp_path: Path) -> None:
    data = b"\x80\x02" + GLOBAL_RECORD + b")\x81r" + struct.pack("<I", 2**31) + b"}b."
    assert "made to fill the memory" in refused(write(tmp_path / "m.pth", {"r/data.pkl": data}))


def test_a_module_that_contains_itself_ends(tmp_path: Path) -> None:
    own = b"\x80\x02" + GLOBAL_RECORD + b")\x81q\x00}(" + text("a") + b"h\x00" + text("b") + b"h\x00ub."
    assert "modules within modules without end" in refused(write(tmp_path / "m.pth", {"r/data.pkl": own}))


def test_modules_that_multiply_end(tmp_path: Path) -> None:
    """Forty modules, each of which holds the next one twice, are 2**40 by their paths."""
    data = b"\x80\x02"
    for _ in range(40):
        data += GLOBAL_RECORD + b")\x81}(" + text("a")
    data += b"N"
    for k in range(40):
        data += b"q" + bytes([k]) + text("b") + b"h" + bytes([k]) + b"ub"
    assert "more than 1,000,000 attributes" in refused(write(tmp_path / "m.pth", {"r/data.pkl": data + b"."}))


def number(n: int) -> bytes:
    data = n.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def with_tensor(
    path: Path, n: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], key: str = "0"
) -> Path:
    """An archive of one tensor, a view of n numbers, of which four are stored."""
    storage = b"(" + text("storage") + b"ctorch\nDoubleStorage\n" + text(key) + text("cpu") + number(n) + b"tQ"
    tensor = TOKEN + b"(" + storage + number(offset) + sizes(shape) + sizes(stride) + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + GLOBAL_RECORD + b")\x81}" + text("t") + tensor + b"sb.")
        archive.writestr("m/data/0", np.arange(4.0).tobytes())
    return path


def test_reads_a_view(tmp_path: Path) -> None:
    found = read_archive(with_tensor(tmp_path / "m.pth", 4, 1, (2, 2), (1, 1)), ALL).tensors["t"]
    np.testing.assert_array_equal(found, [[1, 2], [2, 3]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 1, (2, 2), (2, 1)), "reaches beyond the numbers that are stored"),
        ((4, 0, (5,), (1,)), "reaches beyond the numbers that are stored"),
        ((4, 4, (), ()), "reaches beyond the numbers that are stored"),
        ((2**60, 2**50, (2,), (1,)), "shorter than the pickle says"),
        ((5, 0, (5,), (1,)), "shorter than the pickle says"),
        ((4, 0, (2**40, 2**40), (0, 0)), "more than 2 GiB"),
        ((4, -1, (1,), (1,)), "a tensor of no shape"),
        ((4, 0, (2,), (-1,)), "a tensor of no shape"),
        ((4, 0, (2, 2), (1,)), "a tensor of no shape"),
        ((4, 0, (1,) * 9, (1,) * 9), "a tensor of no shape"),
        ((-4, 0, (1,), (1,)), "a tensor of an unknown kind"),
        ((4, 0, (1,), (1,), "1"), "cut short or damaged"),
        ((4, 0, (1,), (1,), "../data.pkl"), "cut short or damaged"),
    ],
)
def test_no_tensor_reaches_beyond_its_numbers(tmp_path: Path, arguments: tuple[Any, ...], expected: str) -> None:
    assert expected in refused(with_tensor(tmp_path / "m.pth", *arguments))


# --- archives --------------------------------------------------------------------------------------------------------


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", {"r/data.pkl": bytes(17 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "is compressed, which PyTorch does not do" in refused(path)
    assert "larger than 16 MiB" in refused(write(tmp_path / "m.pth", {"r/data.pkl": bytes(17 << 20)}))


def test_other_zip_files(tmp_path: Path) -> None:
    assert "no data.pkl of its own" in refused(write(tmp_path / "m.pth", {"r/data.pkl": None}))
    assert "no data.pkl of its own" in refused(write(tmp_path / "m.pth", {"s/data.pkl": b""}))
    assert "big-endian" in refused(write(tmp_path / "m.pth", {"r/byteorder": b"big"}))
    (tmp_path / "m.pth").write_bytes(b"PK")
    assert "cut short or damaged" in refused(tmp_path / "m.pth")


def test_an_archive_that_is_no_model(tmp_path: Path) -> None:
    script(Leaf(), tmp_path / "m.pth")
    with pytest.raises(ModelFileError, match=r"m\.pth cannot be imported .*: it is an archive of TorchScript, but no"):
        deepmd.load(tmp_path / "m.pth")


PICKLE = entries()["r/data.pkl"]


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(PICKLE) - 1), data=st.binary(min_size=0, max_size=6), n_lost=st.integers(0, 4))
def test_any_change_of_the_pickle_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, place: int, data: bytes, n_lost: int
) -> None:
    changed = PICKLE[:place] + data + PICKLE[place + n_lost :]
    path = write(tmp_path_factory.getbasetemp() / "changed.pth", {"r/data.pkl": changed})
    with contextlib.suppress(ModelFileError):
        deepmd.load(path)
