"""`dpserver serve --dp-ipi water.json`: the input file of DeePMD-kit's driver `dp_ipi`, taken as it is.

| key | here |
|---|---|
| `graph_file` | `--model` |
| `use_unix`, `host` | `--unix HOST` |
| `host`, `port` | `--host`, `--port`, without `use_unix` |
| `coord_file`, `atom_type` | the order of the atoms, as by `--template`: each name in the file stands for a type |
| `verbose` | `--log-level debug` |

Paths are seen from the working directory, as `dp_ipi` does it, and other keys have no effect.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from dpserver.engine import TypedOrder
    from dpserver.transport import Endpoint

logger = logging.getLogger(__name__)

_OPTION: Final = "--dp-ipi"
_KEYS: Final = ("verbose", "use_unix", "port", "host", "graph_file", "coord_file", "atom_type")
_DECIDED: Final = {
    "model": "--model",
    "port": "--port",
    "host": "--host",
    "unix": "--unix",
    "is_unix": "-u",
    "is_shm": "--shm",
    "connect": "--connect",
    "is_mpi_driver": "--mpi-driver",
    "template": "--template",
    "species": "--species",
}
"""Parameters of `serve` that the file decides, and their options."""

T = TypeVar("T")


@dataclass(frozen=True)
class DPIPI:
    """What a file says.

    Attributes:
        file: its path.
        model: path of the model file.
        host: address of the peer, or the name of its unix socket.
        port: None with a unix socket.
        coord_file: XYZ file with the names of the atoms in the peer's order.
        atom_types: type of each name.
        is_verbose: whether to log every message.
        ignored: keys without an effect.
    """

    file: Path
    model: Path
    host: str
    port: int | None
    coord_file: Path
    atom_types: dict[str, int]
    is_verbose: bool
    ignored: tuple[str, ...]

    def order(self) -> TypedOrder:
        """The order of the atoms.

        Raises:
            ConfigError: the file of the atoms cannot be read, or holds a name that has no type.
        """
        from dpserver.engine import TypedOrder

        return TypedOrder.from_names(self.coord_file, self.atom_types, f"the coord_file of {self.file}")

    def endpoint(self, prefix: str) -> Endpoint:
        """Where the peer listens.

        Args:
            prefix: what the path of a unix socket starts with.
        """
        from dpserver.transport.endpoint import inet_endpoint, unix_endpoint

        return unix_endpoint(self.host, prefix) if self.port is None else inet_endpoint(self.host, self.port)

    def log_level(self, context: typer.Context, given: str) -> str:
        """What the file says of it, unless the command line does.

        Args:
            context: of the command line.
            given: by the command line, or the default.
        """
        source = context.get_parameter_source("log_level")
        is_default = source is None or source.name == "DEFAULT"
        return "debug" if self.is_verbose and is_default else given

    def tell(self, species: Sequence[str]) -> None:
        """Log which option each key has stood for.

        Args:
            species: of the model, which knows all types.
        """
        names = ", ".join(f"{name} is {species[kind]}" for name, kind in self.atom_types.items())
        where = f"--host {self.host} --port {self.port}" if self.port is not None else f"--unix {self.host}"
        level = "debug" if self.is_verbose else "info"
        logger.info("%s is taken as --model %s %s --log-level %s", self.file, self.model, where, level)
        logger.info("%s: the order of the atoms is that of %s, where %s", self.file, self.coord_file, names)
        for name, kind in self.atom_types.items():
            if name in species and species[kind] != name:
                logger.warning(
                    "%s: atom_type says that %s is type %d; the model calls that type %s",
                    self.file,
                    name,
                    kind,
                    species[kind],
                )
        if self.ignored:
            logger.warning("%s: %s without an effect, as with dp_ipi", self.file, ", ".join(self.ignored))


def read(path: Path) -> DPIPI:
    """Read the input file of `dp_ipi`.

    Raises:
        ConfigError: it is missing, no JSON, or lacks what `dp_ipi` needs.
    """
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{_OPTION} {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{_OPTION} {path} is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{_OPTION} {path} holds a {type(given).__name__}, expected the keys of dp_ipi's input")
    if isinstance(given.get("graph_file"), list):
        raise ConfigError(
            f"{path}: graph_file is a list, which dp_ipi does not take either; make one file of several models with "
            "`dpserver committee`, and give its name"
        )
    is_unix = _take(given, "use_unix", bool, path)
    return DPIPI(
        path,
        Path(_take(given, "graph_file", str, path)),
        _take(given, "host", str, path),
        None if is_unix else _take(given, "port", int, path),
        Path(_take(given, "coord_file", str, path)),
        _types(_take(given, "atom_type", dict, path), path),
        _take(given, "verbose", bool, path) if "verbose" in given else False,
        tuple(key for key in given if key not in _KEYS),
    )


def _take(given: dict[str, Any], key: str, kind: type[T], path: Path) -> T:
    if key not in given:
        raise ConfigError(f"{path} lacks {key}; the input of dp_ipi has {', '.join(_KEYS)}")
    value = given[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}: {key} is {value!r}, expected {_WORDS[kind]}")
    return value


_WORDS: Final[dict[type, str]] = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    dict: 'types by name, as {"O": 0, "H": 1}',
}


def _types(given: dict[str, Any], path: Path) -> dict[str, int]:
    for name, kind in given.items():
        if type(kind) is not int or kind < 0:
            raise ConfigError(f"{path}: atom_type of {name} is {kind!r}, expected a type of the model, from 0 on")
    return given


def check_options(context: typer.Context) -> None:
    """Refuse what the file decides already.

    Raises:
        ConfigError: an option on the command line is one of these.
    """
    sources = {name: context.get_parameter_source(name) for name in _DECIDED}
    given = [_DECIDED[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise ConfigError(
            f"{', '.join(given)} {verb} decided by the file of {_OPTION}; change it there, or leave it out"
        )
