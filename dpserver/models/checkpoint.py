"""The model file `w.pt`: one dict of plain values and tensors, read with `weights_only=True` and nothing else."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpserver.errors import ConfigError, DeviceError, ModelFileError
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential

FORMAT = "dpserver"
VERSION = 1
_KEYS = ("config", "state", "species", "template", "statistics", "training")


def contents(potential: Potential, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a model by plain values and tensors, as `write` stores them.

    Args:
        potential: the model; its tensors are copied to the CPU.
        training: where it comes from: data fingerprint, seed, steps, validation errors, date, code version.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": {"model": potential.config.model_dump(mode="json"), "precision": potential.precision},
        "state": {name: tensor.detach().cpu().clone() for name, tensor in potential.state_dict().items()},
        "species": list(potential.species),
        "template": None if potential.template is None else list(potential.template),
        "statistics": {"min_distance": torch.from_numpy(potential.min_distance.copy())},
        "training": dict(training or {}),
    }


def write(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a dict of plain values and tensors, atomically: the file is the old one or the whole new one."""
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            torch.save(dict(values), stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(path: str | Path, potential: Potential, training: Mapping[str, Any] | None = None) -> None:
    """Write a model file; see `contents`."""
    write(path, contents(potential, training))


def read(path: str | Path) -> dict[str, Any]:
    """Read the dict of a model file, with its tensors on the CPU; nothing in the file is executed.

    Raises:
        ModelFileError: missing, no model file, unsafe, damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"model file {path} does not exist" if not path.exists() else f"{path} is not a file")
    if not zipfile.is_zipfile(path):
        raise ModelFileError(f"{path} is not a dpserver model file; expected one written by `dpserver train`")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{path} is not a dpserver model file: it holds more than tensors and plain values, and is refused because "
            "loading it could run code; expected a file written by `dpserver train`"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"{path} is not a dpserver model file or is damaged: {reason}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelFileError(f"{path} is not a dpserver model file: it lacks the entry format = {FORMAT!r}")
    if values.get("version") != VERSION:
        raise ModelFileError(
            f"{path} has format version {values.get('version')}, this dpserver reads {VERSION}; update dpserver"
        )
    if missing := [key for key in _KEYS if key not in values]:
        raise ModelFileError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    return values


def restore(values: Mapping[str, Any], source: str = "the model file") -> Potential:
    """Make a potential of the dict that `read` returns.

    Raises:
        ModelFileError: the parts of the file do not fit together.
    """
    try:
        config = parse(ModelConfig, values["config"]["model"])
        potential = Potential(config, precision=values["config"]["precision"])
        potential.load_state_dict(values["state"])
        distances = values["statistics"]["min_distance"].numpy().astype(np.float64)
    except (ConfigError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{source} is inconsistent: {str(error).splitlines()[0]}") from None
    if tuple(values["species"]) != potential.species or distances.shape != potential.min_distance.shape:
        raise ModelFileError(f"{source} is inconsistent: species and statistics do not fit its type_map")
    if not all(torch.isfinite(p).all() for p in potential.parameters()):
        raise ModelFileError(f"{source} holds weights that are not finite: its training has diverged")
    potential.min_distance = distances
    potential.template = None if values["template"] is None else tuple(values["template"])
    return potential


def load(path: str | Path, device: str = "auto", precision: str | None = None) -> Potential:
    """Load a trained potential for evaluation.

    Args:
        path: a model file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one it was trained in.

    Raises:
        ModelFileError: the file cannot be used.
        DeviceError: the device does not exist.
        ConfigError: the precision is unknown.
    """
    potential = restore(read(path), str(path))
    if precision is not None:
        potential.set_precision(precision)
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    return potential.to(choose_device(device)).eval()


def choose_device(name: str) -> torch.device:
    """Turn a device's name into a device that exists.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    return device
