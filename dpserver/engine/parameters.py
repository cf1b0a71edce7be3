"""The parameters that a model takes beside a structure, and that no message carries: who gives them.

Authority, highest first: the peer's INIT parameters (`fparam: 0.5 1.2`, `aparam: charges.npy`), the endpoint's
`--fparam` or `--aparam`, the model's own default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats
from dpserver.models.parameters import Takes

_LARGEST_FILE: Final = 1 << 30


@dataclass(frozen=True, eq=False)
class Parameters:
    """What one side gives.

    Attributes:
        fparam: (n_fparam,) for each structure, or None.
        aparam: (n_atoms, n_aparam), (n_atoms,), or all numbers one after the other; or None.
        origin: who gives it, for messages.
    """

    fparam: Floats | None = None
    aparam: Floats | None = None
    origin: str = ""

    def check(self, takes: Takes) -> None:
        """Refuse at once what the first structure would be refused for.

        Raises:
            ConfigError: a model takes no such parameters, or another number.
        """
        if self.fparam is not None:
            _check_count("fparam", len(self.fparam), takes.n_fparam, self.origin)
        if self.aparam is not None and not takes.n_aparam:
            _check_count("aparam", 1 if self.aparam.ndim == 1 else self.aparam.shape[1], 0, self.origin)


def read_fparam(text: str, origin: str) -> Floats:
    """Read numbers between spaces or commas, in brackets or not, (n_fparam,).

    Raises:
        ConfigError: there is none, or one is no finite number.
    """
    words = text.strip().strip("[]()").replace(",", " ").split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.array([np.nan])
    if not len(values) or not np.isfinite(values).all():
        raise ConfigError(f"{origin} is {text!r}, expected numbers such as 0.5,1.2")
    return values


def read_aparam(path: Path, origin: str) -> Floats:
    """Read the parameters of atoms from a file of numpy's.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds no finite numbers.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{origin} {path} is larger than {_LARGEST_FILE} bytes; give a few numbers per atom")
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{origin} {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{origin} {path} is no .npy file of numbers: {error}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not 1 <= values.ndim <= 2:
        raise ConfigError(f"{origin} {path}: expected numbers of shape (n_atoms, n_aparam)")
    if not np.isfinite(values).all():
        raise ConfigError(f"{origin} {path} holds numbers that are not finite")
    return values.astype(np.float64)


def from_init(given: Mapping[str, str]) -> Parameters:
    """What a peer gives in its INIT parameters: `fparam` as numbers, `aparam` as numbers or as a file.

    Raises:
        ConfigError: they cannot be read.
    """
    fparam, aparam, atoms = given.get("fparam"), given.get("aparam"), None
    if aparam:
        name, origin = aparam.strip("'\""), "the peer's INIT aparam"
        atoms = read_aparam(Path(name), origin) if name.lower().endswith(".npy") else read_fparam(name, origin)
    frames = read_fparam(fparam.strip("'\""), "the peer's INIT fparam") if fparam else None
    return Parameters(frames, atoms, "the peer's INIT parameters")


def resolve(takes: Takes, peer: Parameters, endpoint: Parameters, n_atoms: int) -> tuple[Floats | None, Floats | None]:
    """Choose the parameters of one structure.

    Args:
        takes: what the model takes.
        peer: what the peer gives.
        endpoint: what the user gives for it.
        n_atoms: atoms of the structure.

    Returns:
        (n_fparam,) and (n_atoms, n_aparam); None where the model takes none, or has a default that only it knows.

    Raises:
        StructureError: parameters are missing, or are not of the number that the model takes.
    """
    try:
        for given in (peer, endpoint):
            given.check(takes)
    except ConfigError as error:
        raise StructureError(str(error)) from None
    fparam = peer.fparam if peer.fparam is not None else endpoint.fparam
    if fparam is None and takes.n_fparam:
        if not takes.has_default_fparam:
            raise StructureError(
                f"the model takes {_numbers('fparam', takes.n_fparam)} of each structure, and nothing says which. Give "
                "them with --fparam, or in the peer's input as <parameters> {fparam: 0.5 1.2} </parameters>"
            )
        fparam = None if takes.default_fparam is None else np.array(takes.default_fparam)
    return fparam, _atoms(takes, peer if peer.aparam is not None else endpoint, n_atoms)


def _atoms(takes: Takes, given: Parameters, n_atoms: int) -> Floats | None:
    """The parameters of the atoms of one structure."""
    if not takes.n_aparam:
        return None
    if given.aparam is None:
        raise StructureError(
            f"the model takes {_numbers('aparam', takes.n_aparam)} of each atom, and nothing says which. Give them "
            "with --aparam FILE.npy, or in the peer's input as <parameters> {aparam: FILE.npy} </parameters>"
        )
    if given.aparam.size != n_atoms * takes.n_aparam or len(given.aparam) not in (n_atoms, given.aparam.size):
        shape = " × ".join(map(str, given.aparam.shape))
        raise StructureError(
            f"{given.origin}: {shape} parameters aparam given, but the structure has {n_atoms} atoms, and the model "
            f"takes {takes.n_aparam} of each"
        )
    return given.aparam.reshape(n_atoms, takes.n_aparam)


def _check_count(name: str, given: int, expected: int, origin: str) -> None:
    if given != expected:
        takes = f"takes {_numbers(name, expected)}" if expected else f"takes no parameters {name}"
        hint = "" if expected else "; leave them out, or serve the model that was trained with them"
        raise ConfigError(f"{origin}: {_numbers(name, given)} given, but the model {takes}{hint}")


def _numbers(name: str, n: int) -> str:
    return f"{n} {'parameter' if n == 1 else 'parameters'} {name}"
