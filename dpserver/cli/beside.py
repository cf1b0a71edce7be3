"""What `dpserver serve` is given beside the model: its parameters, and other models whose answers travel as extras."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from dpserver.daemon.team import Service
    from dpserver.engine import ForceModel, Parameters
    from dpserver.models.tensors import TensorModel

logger = logging.getLogger(__name__)


def how_to_serve(model: object, path: Path, hint: str = "") -> str:
    """The command that serves a model, for a message.

    Args:
        model: of energies, or one that is served beside such.
        path: its file.
        hint: options that are needed.
    """
    kind = getattr(model, "kind", None)
    return (
        f"dpserver --model {path}{hint} --port 31415"
        if kind is None
        else f"dpserver --model energies.pt --{kind} {path}"
    )


def check_options(extras: str, dipole: Path | None, polar: Path | None, has_born_charges: bool) -> None:
    """Refuse options that contradict one another.

    Raises:
        ConfigError: they do.
    """
    if has_born_charges and dipole is None:
        raise ConfigError("--born-charges needs --dipole FILE, whose derivative they are")
    if extras == "off" and (dipole or polar):
        name = "--dipole" if dipole else "--polar"
        raise ConfigError(f"--extras off keeps back what {name} is evaluated for; leave one of them out")


def parameters_of(fparam: str | None, aparam: Path | None) -> Parameters:
    """The parameters that the command line gives.

    Raises:
        ConfigError: they cannot be read.
    """
    from dpserver.engine.parameters import Parameters, read_aparam, read_fparam

    origin = " and ".join(name for name, given in (("--fparam", fparam), ("--aparam", aparam)) if given is not None)
    return Parameters(
        None if fparam is None else read_fparam(fparam, "--fparam"),
        None if aparam is None else read_aparam(aparam, "--aparam"),
        origin,
    )


def check_parameters(parameters: Parameters, model: ForceModel) -> None:
    """Refuse at once what every structure would be refused for.

    Raises:
        ConfigError: the model takes no such parameters, or another number.
    """
    from dpserver.models.parameters import taken_by

    parameters.check(taken_by(model))


def accompanied(model: ForceModel, service: Service, device: str, contents: Sequence[Mapping[str, Any]]) -> ForceModel:
    """A model of energies with those beside it that the command line names.

    Args:
        model: of energies.
        service: names the others.
        device: that computes.
        contents: of the files of the others, as `checkpoint.read` returns them.

    Raises:
        ModelFileError: a file cannot be used, or holds another kind of model.
        ConfigError: the models do not fit together.
    """
    if not service.beside:
        return model
    from dpserver.engine import Accompanied

    others = {
        kind: _make(kind, values, path, device, service.precision)
        for (kind, path), values in zip(service.beside, contents, strict=True)
    }
    return Accompanied(model, others.get("dipole"), others.get("polar"), has_born_charges=service.has_born_charges)


def _make(kind: str, values: Mapping[str, Any], path: str, device: str, precision: str | None) -> TensorModel:
    """Make a model of dipoles or polarizabilities."""
    from dpserver.models import checkpoint

    model = checkpoint.prepare_tensor(values, path, device, precision)
    if model.kind != kind:
        raise ConfigError(f"--{kind} {path} is a model of the kind {model.kind}; give it with --{model.kind}")
    carriers = ", ".join(model.species[c] for c in model.selected)
    logger.info("%s: %s on %s, cutoff %g Å; sent beside the forces", path, kind, carriers, model.rcut)
    return model
