"""What the sections of the models have in common: kinds of values, and checks of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from dpserver.models.section import Count, Positive, complain

Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]
NetPrecision = Literal["default", "float32", "float64"]

ACTIVATIONS: Final = (
    "tanh", "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu", "silut", "custom_silu", "linear", "none",
)  # fmt: skip

DESCRIPTOR_ALIASES: Final = {
    "se_a": "se_e2_a",
    "se_r": "se_e2_r",
    "dpa1": "se_atten",
    **dict.fromkeys(("se_at", "se_a_3be", "se_t"), "se_e3"),
}
"""Other names of descriptors."""


def descriptor_name(value: Any) -> Any:
    """The section of a descriptor, with its own name in place of an alias."""
    if isinstance(value, Mapping) and value.get("type") in DESCRIPTOR_ALIASES:
        return {**value, "type": DESCRIPTOR_ALIASES[value["type"]]}
    return value


def _activation(value: Any) -> str:
    name, _, threshold = value.lower().partition(":") if isinstance(value, str) else ("", "", "")
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation function; supported: {', '.join(ACTIVATIONS)} (silut:3.0 with threshold)")
    if threshold and name not in ("silut", "custom_silu"):
        raise ValueError("only silut and custom_silu take a threshold, as in silut:3.0")
    if threshold:
        _positive_number(threshold, "the threshold of silut")
    return str(value).lower()


def _positive_number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ValueError(f"{what} must be a positive number")
    return number


def _sel(value: Any) -> Any:
    if isinstance(value, str):
        head, _, factor = value.partition(":")
        if head != "auto" or (factor and _positive_number(factor, "the factor of auto") < 1.0):
            raise ValueError('must be a list with one integer per type, "auto", or "auto:factor" with a factor ≥ 1')
        return value
    if not isinstance(value, list | tuple) or not all(type(n) is int and n >= 0 for n in value) or not sum(value):
        raise ValueError('must be a list with one integer per type, not all 0, or "auto" or "auto:factor"')
    return tuple(value)


def _seed(value: Any) -> Any:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError("must be an integer ≥ 0, or null for a seed drawn by the program")
    return value


Activation = Annotated[str, BeforeValidator(_activation)]
Sel = Annotated[tuple[int, ...] | str, BeforeValidator(_sel)]
Seed = Annotated[int | None, BeforeValidator(_seed)]
TypePairs = tuple[tuple[Count, Count], ...]


def check_pairs(key: str, pairs: TypePairs, n_types: int) -> None:
    """Raise where a pair names a type that does not exist."""
    for pair in pairs:
        if max(pair) >= n_types:
            raise complain(key, f"types go from 0 to {n_types - 1}, got {list(pair)}")
