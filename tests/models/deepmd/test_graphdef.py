"""Constants of TensorFlow's frozen graphs, from bytes put together by hand."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google.protobuf")

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models.deepmd import graphdef
from dpserver.models.deepmd.graphdef import read_constants


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def varint(value: int) -> bytes:
    data = bytearray()
    value &= 2**64 - 1
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(dtype: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return number(1, dtype) + message(2, b"".join(message(2, number(1, n)) for n in shape)) + values


def node(name: str, tensor: bytes, op: str = "Const") -> bytes:
    attribute = message(1, b"value") + message(2, message(8, tensor))
    other = message(5, message(1, b"dtype") + message(2, number(6, 2)))  # a field that is not described here
    return message(1, message(1, name.encode()) + message(2, op.encode()) + other + message(5, attribute))


def graph(tmp_path: Path, *nodes: bytes) -> Path:
    (tmp_path / "m.pb").write_bytes(b"".join(nodes))
    return tmp_path / "m.pb"


def content(values: object, dtype: str) -> bytes:
    return message(4, np.asarray(values, dtype).tobytes())


def test_every_way_to_store_numbers(tmp_path: Path) -> None:
    found = read_constants(
        graph(
            tmp_path,
            node("doubles", tensor(2, (2, 2), content([[1, 2], [3, 4]], "<f8"))),
            node("floats", tensor(1, (3,), message(5, struct.pack("<3f", 1.5, 2.5, 3.5)))),
            node("integers", tensor(3, (2,), message(7, varint(5) + varint(-2)))),
            node("long", tensor(9, (), number(10, 2**40))),
            node("filled", tensor(2, (2, 3), message(6, struct.pack("<2d", 7.0, 8.0)))),
            node("text", tensor(7, (), message(8, b"water"))),
            node("texts", tensor(7, (2,), message(8, b"a") + message(8, b"b"))),
            node("flag", tensor(10, (), number(11, 1))),
            node("gradients/x", tensor(2, (), content(1, "<f8"))),
            node("sum", tensor(2, (), content(1, "<f8")), op="Add"),
        )
    )
    assert found.pop("text") == b"water"
    expected = {
        "doubles": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "floats": np.array([1.5, 2.5, 3.5], np.float32),
        "integers": np.array([5, -2], np.int32),
        "long": np.array(2**40),
        "filled": np.array([[7.0, 8, 8], [8, 8, 8]]),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert np.asarray(found[name]).dtype == values.dtype


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "has no nodes"),
        (b"\xff\xff", "no frozen TensorFlow graph, cut short or damaged"),
        (b"PK\x03\x04", "no frozen TensorFlow graph"),
        (node("x", tensor(2, (2,), content([1, 2, 3], "<f8")))[:-3], "no frozen TensorFlow graph"),
        (node("x", tensor(2, (4,), content([1, 2, 3], "<f8"))), "x has 3 numbers for the shape [4]"),
        (node("x", tensor(2, (3,), message(4, b"12345"))), "x has"),
        (node("x", tensor(2, (2,), b"")), "x has 0 numbers for the shape [2]"),
        (node("x", tensor(2, (1,), message(6, struct.pack("<2d", 7.0, 8.0)))), "x has 2 numbers for the shape [1]"),
        (node("x", tensor(2, (2**40,), message(6, struct.pack("<d", 7.0)))), "more than 2 GiB"),
        (node("x", tensor(2, (2**40, 2**40), message(6, struct.pack("<d", 7.0)))), "more than 2 GiB"),
        (node("x", tensor(2, (-1,), message(6, struct.pack("<d", 7.0)))), "a size below 0"),
    ],
)
def test_damaged_graphs(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(ModelFileError) as error:
        read_constants(graph(tmp_path, data))
    assert expected in str(error.value)


def test_absurd_files_are_not_read(tmp_path: Path) -> None:
    path = graph(tmp_path, b"")
    with path.open("r+b") as stream:
        stream.truncate(2**30 + 1)
    with pytest.raises(ModelFileError, match="larger than 1 GiB"):
        read_constants(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphdef._graph_class.cache_clear()
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pool", None)
    with pytest.raises(ConfigError, match=r"a \.pb file needs the package protobuf"):
        read_constants(graph(tmp_path, b""))
