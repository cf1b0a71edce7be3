"""What evaluates a model file: dpserver itself, or an installed DeePMD-kit."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, overload

from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.compilation import TABLE_ERROR
from dpserver.models.deepmd_kit import DeepPotModel
from dpserver.models.potential import Potential

BACKENDS: Final = ("native", "deepmd")


@overload
def load(
    path: str | Path,
    device: str = ...,
    precision: str | None = ...,
    threads: int | None = ...,
    table_error: float = ...,
    backend: Literal["native"] = ...,
) -> Potential | Committee: ...


@overload
def load(
    path: str | Path,
    device: str = ...,
    precision: str | None = ...,
    threads: int | None = ...,
    table_error: float = ...,
    *,
    backend: str,
) -> Potential | Committee | DeepPotModel: ...


def load(
    path: str | Path,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    table_error: float = TABLE_ERROR,
    backend: str = "native",
) -> Potential | Committee | DeepPotModel:
    """Load a trained potential, or a committee of several, for evaluation.

    Args:
        path: a model file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one it was trained in.
        threads: that compute on the CPU; by default one for each core available.
        table_error: of forces, by tables of the embedding nets, relative to their typical size; what is aimed at, of
            which ten times as much is accepted.
        backend: `native`, or `deepmd`: an installed DeePMD-kit evaluates its own file, in the precision of that file
            and without tables.

    Raises:
        ModelFileError: the file cannot be used.
        DeviceError: the device does not exist.
        ConfigError: the precision or the backend is unknown, a number is not positive, or DeePMD-kit is not installed.
    """
    if backend == "native":
        return checkpoint.load(path, device, precision, threads, table_error)
    if backend != "deepmd":
        raise ConfigError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if precision is not None:
        raise ConfigError(f"precision {precision!r} has no meaning with the backend deepmd: a model file has its own")
    return DeepPotModel(path, device, threads)
