"""What evaluates a model file: dpserver itself, an installed DeePMD-kit, or the package of sGDML models."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, overload

from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.deepmd_kit import DeepPotModel
from dpserver.models.gdml import GDMLModel
from dpserver.models.gdml_file import recognises
from dpserver.models.potential import Potential

BACKENDS: Final = ("native", "deepmd")
GDML: Final = "sgdml"
"""What evaluates the files of the package `sgdml`, and is told by them."""

Loaded = Potential | Committee | DeepPotModel | GDMLModel


def backend_of(path: str | Path, backend: str = "native") -> str:
    """What is to evaluate a model file.

    Args:
        path: of it.
        backend: what the user asked for, one of `BACKENDS`.
    """
    return GDML if backend == "native" and recognises(path) else backend


@overload
def load(
    path: str | Path,
    device: str = ...,
    precision: str | None = ...,
    threads: int | None = ...,
    table_error: float = ...,
    backend: Literal["native"] = ...,
) -> Potential | Committee | GDMLModel: ...


@overload
def load(
    path: str | Path,
    device: str = ...,
    precision: str | None = ...,
    threads: int | None = ...,
    table_error: float = ...,
    *,
    backend: str,
) -> Loaded: ...


def load(
    path: str | Path,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    table_error: float = TABLE_ERROR,
    backend: str = "native",
) -> Loaded:
    """Load a trained potential, or a committee of several, for evaluation.

    Args:
        path: a model file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one it was trained in.
        threads: that compute on the CPU; by default one for each core available.
        table_error: of forces, by tables of the embedding nets, relative to their typical size; what is aimed at, of
            which ten times as much is accepted.
        backend: `native`, or `deepmd`: an installed DeePMD-kit evaluates its own file, in the precision of that file
            and without tables. An sGDML model (`.npz`) is evaluated by the package `sgdml`, likewise.

    Raises:
        ModelFileError: the file cannot be used.
        DeviceError: the device does not exist.
        ConfigError: the precision or the backend is unknown, a number is not positive, or DeePMD-kit or sgdml is not
            installed.
    """
    backend = backend_of(path, backend)
    if backend == "native":
        return checkpoint.load(path, device, precision, threads, table_error)
    if backend not in (*BACKENDS, GDML):
        raise ConfigError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if precision is not None:
        raise ConfigError(
            f"precision {precision!r} has no meaning with the backend {backend}: a model file has its own"
        )
    if backend == GDML:
        return GDMLModel(path, device)
    return DeepPotModel(path, device, threads)
