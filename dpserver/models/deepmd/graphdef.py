"""Frozen TensorFlow graphs (`.pb`) read as data: the constants of the graph, by name.

Only the few fields that name and hold constants are described here, after tensorflow/core/framework/*.proto; protobuf
passes over all others. Nothing of the graph is run, and TensorFlow is not needed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.neutral import library
from dpserver.models.deepmd.tree import Array, Budget

Constants = dict[str, Array | bytes]

_INT32, _INT64, _FLOAT, _DOUBLE, _STRING, _BYTES, _MESSAGE = 5, 3, 2, 1, 9, 12, 11
_ONE, _MANY = 1, 3
_MESSAGES: Final[dict[str, dict[str, tuple[int, int, int, str]]]] = {
    "Dim": {"size": (1, _INT64, _ONE, "")},
    "Shape": {"dim": (2, _MESSAGE, _MANY, "Dim")},
    "Tensor": {
        "dtype": (1, _INT32, _ONE, ""),
        "tensor_shape": (2, _MESSAGE, _ONE, "Shape"),
        "tensor_content": (4, _BYTES, _ONE, ""),
        "float_val": (5, _FLOAT, _MANY, ""),
        "double_val": (6, _DOUBLE, _MANY, ""),
        "int_val": (7, _INT32, _MANY, ""),
        "string_val": (8, _BYTES, _MANY, ""),
        "int64_val": (10, _INT64, _MANY, ""),
    },
    "Value": {"tensor": (8, _MESSAGE, _ONE, "Tensor")},
    "Attribute": {"key": (1, _STRING, _ONE, ""), "value": (2, _MESSAGE, _ONE, "Value")},
    "Node": {
        "name": (1, _STRING, _ONE, ""),
        "op": (2, _STRING, _ONE, ""),
        "attr": (5, _MESSAGE, _MANY, "Attribute"),
    },
    "Graph": {"node": (1, _MESSAGE, _MANY, "Node")},
}
"""Fields of each message: number, type, whether there may be several, and the message they hold."""
_DTYPES: Final = {1: ("<f4", "float_val"), 2: ("<f8", "double_val"), 3: ("<i4", "int_val"), 9: ("<i8", "int64_val")}
_STRING_DTYPE: Final = 7
_MAX_FILE: Final = 1 << 30


@cache
def _graph_class() -> Any:
    """The class of a graph, made from `_MESSAGES`."""
    descriptor_pb2 = library("google.protobuf.descriptor_pb2", "protobuf", "a .pb file")
    pools = library("google.protobuf.descriptor_pool", "protobuf", "a .pb file")
    factory = library("google.protobuf.message_factory", "protobuf", "a .pb file")
    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package="dpserver", syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, label, target) in fields.items():
            field = described.field.add(name=name, number=number, type=kind, label=label)
            if target:
                field.type_name = f".dpserver.{target}"
    pool = pools.DescriptorPool()
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("dpserver.Graph"))


def read_constants(path: Path) -> Constants:
    """Read the constants of a frozen graph that have names of their own.

    Raises:
        ModelFileError: no graph, damaged, or too large.
        ConfigError: protobuf is not installed.
    """
    graph = _graph_class()()
    message = library("google.protobuf.message", "protobuf", "a .pb file")
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ModelFileError("it is larger than 1 GiB; no model is as large")
        graph.ParseFromString(path.read_bytes())
    except (message.DecodeError, ValueError, OSError) as error:
        raise ModelFileError(f"it is no frozen TensorFlow graph, cut short or damaged: {error}") from None
    if not graph.node:
        raise ModelFileError("it is no frozen TensorFlow graph: it has no nodes")
    budget, constants = Budget(), {}
    for node in graph.node:
        if node.op == "Const" and not node.name.startswith("gradients/"):
            tensors = [a.value.tensor for a in node.attr if a.key == "value"]
            if tensors and (value := _value(node.name, tensors[0], budget)) is not None:
                constants[node.name] = value
    return constants


def _value(name: str, tensor: Any, budget: Budget) -> Array | bytes | None:
    """Numbers, or one text; None for what is neither."""
    if tensor.dtype == _STRING_DTYPE:
        return bytes(tensor.string_val[0]) if len(tensor.string_val) == 1 else None
    if tensor.dtype not in _DTYPES:
        return None
    dtype, field = _DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    budget.spend(shape, np.dtype(dtype).itemsize, f"its constant {name}")
    size = int(np.prod(shape, dtype=np.int64))
    values: Array
    if tensor.tensor_content:
        content = bytes(tensor.tensor_content)
        values = np.frombuffer(content[: len(content) // int(dtype[2]) * int(dtype[2])], dtype)
    else:
        values = np.array(getattr(tensor, field), dtype)
        if 0 < len(values) < size:  # the last one stands for all that follow
            values = np.concatenate([values, np.full(size - len(values), values[-1])])
    if len(values) != size:
        raise ModelFileError(f"its constant {name} has {len(values)} numbers for the shape {shape}; it is damaged")
    return values.reshape(shape)


def numbers(constants: Constants, *names: str) -> Any:
    """The first array there is under one of these names."""
    return next((v for name in names if isinstance(v := constants.get(name), np.ndarray)), None)
