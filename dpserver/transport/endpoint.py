"""Where a peer listens, as the user writes it: `inet:host:port`, `unix:name`, `shm:name`, each with `@template`."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from dpserver.errors import ConfigError

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 31415
DEFAULT_PREFIX = "/tmp/ipi_"

_FORMS = "inet:HOST:PORT, unix:NAME, shm:NAME or an absolute path as NAME, with @TEMPLATE behind it if wanted"
_LONGEST_UNIX_PATH = 107


@dataclass(frozen=True)
class Address:
    """What a socket is connected to, resolved.

    Attributes:
        family: of the socket.
        target: what `connect` takes.
    """

    family: socket.AddressFamily
    target: tuple[object, ...] | str


@dataclass(frozen=True)
class InetEndpoint:
    """A TCP port on a host."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"inet:[{self.host}]:{self.port}" if ":" in self.host else f"inet:{self.host}:{self.port}"

    def resolve(self) -> list[Address]:
        """Look the host up; to be done once, before anything is served, for it may take long.

        Raises:
            ConfigError: the name has no address.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"host {self.host!r} of {self} has no address ({error}); check its name") from None
        return [Address(family, target) for family, _, _, _, target in found]


@dataclass(frozen=True)
class UnixEndpoint:
    """A unix socket, on this machine."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def resolve(self) -> list[Address]:
        """Its path is its address."""
        return [Address(socket.AF_UNIX, self.path)]


@dataclass(frozen=True)
class ShmEndpoint:
    """Shared memory, announced over a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"shm:{self.path}"

    def resolve(self) -> list[Address]:
        """The path of its socket is its address."""
        return [Address(socket.AF_UNIX, self.path)]


Endpoint = InetEndpoint | UnixEndpoint | ShmEndpoint


def inet_endpoint(host: str, port: int) -> InetEndpoint:
    """Check a host and a port.

    Raises:
        ConfigError: the host is empty or the port is no port.
    """
    if not host:
        raise ConfigError("an inet endpoint needs a host, got an empty one")
    if not 1 <= port <= 65535:
        raise ConfigError(f"port {port} is out of range; expected 1 to 65535")
    return InetEndpoint(host, port)


def unix_endpoint(name: str, prefix: str = DEFAULT_PREFIX) -> UnixEndpoint:
    """Make the path of a unix socket as i-PI and ASE do: prefix and name; an absolute path is taken as it is.

    Raises:
        ConfigError: the name is empty, or the path too long for the system.
    """
    return UnixEndpoint(_socket_path("unix", name, prefix))


def shm_endpoint(name: str, prefix: str = DEFAULT_PREFIX) -> ShmEndpoint:
    """The same for a peer whose structures and forces are in shared memory.

    Raises:
        ConfigError: the name is empty, or the path too long for the system.
    """
    return ShmEndpoint(_socket_path("shm", name, prefix))


def _socket_path(kind: str, name: str, prefix: str) -> str:
    if not name:
        raise ConfigError(f"a {kind} endpoint needs a name, got an empty one")
    path = name if name.startswith("/") else prefix + name
    if len(path.encode()) > _LONGEST_UNIX_PATH:
        raise ConfigError(f"the path of a unix socket has at most {_LONGEST_UNIX_PATH} bytes; {path!r} is longer")
    return path


def parse_endpoint(text: str, prefix: str = DEFAULT_PREFIX) -> tuple[Endpoint, Path | None]:
    """Read one `--connect` value.

    Args:
        text: `inet:host:port` (brackets around an IPv6 address), `unix:name` or `unix:/path`, likewise `shm:`, then
            perhaps `@file`.
        prefix: what the system's name of a unix socket starts with.

    Returns:
        The endpoint and its own template, if it has one.

    Raises:
        ConfigError: the text has another form.
    """
    address, at, template = text.partition("@")
    kind, _, rest = address.partition(":")
    if at and not template:
        raise ConfigError(f"endpoint {text!r} ends in @ without a template file")
    path = Path(template) if at else None
    match kind:
        case "inet":
            host, colon, port = rest.rpartition(":")
            if not colon or not (port.isascii() and port.isdigit()):
                raise ConfigError(f"endpoint {text!r} has no port; expected inet:HOST:PORT, as inet:localhost:31415")
            return inet_endpoint(host.removeprefix("[").removesuffix("]"), int(port)), path
        case "unix":
            return unix_endpoint(rest, prefix), path
        case "shm":
            return shm_endpoint(rest, prefix), path
    raise ConfigError(f"endpoint {text!r} is of no known kind; expected {_FORMS}")


def addresses_at_hand(endpoint: str) -> frozenset[Address]:
    """Resolve an endpoint by its name, as far as that needs no other machine: paths, numbers, and localhost.

    Returns:
        Its addresses; none for any other host, or where the text is no name of an endpoint.
    """
    try:
        parsed, template = parse_endpoint(endpoint)
        if template is not None:  # it is another path, with an @ in it
            return frozenset()
        if not isinstance(parsed, InetEndpoint) or parsed.host == DEFAULT_HOST:
            return frozenset(parsed.resolve())
        flags = socket.AI_NUMERICHOST
        found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM, flags=flags)
    except (ConfigError, OSError, UnicodeError):
        return frozenset()
    return frozenset(Address(family, target) for family, _, _, _, target in found)
