"""`dpserver serve`: load a model, dial, and answer for ever."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpserver.errors import ConfigError, StructureError

if TYPE_CHECKING:
    from dpserver.daemon import Target
    from dpserver.engine import Order
    from dpserver.transport import Endpoint

_MOST_CONNECTIONS = 1024
_WHERE = "Where the peer listens"
_WHAT = "What to serve"
_HOW = "How long, how loud"


def serve(
    model: Annotated[
        Path,
        typer.Option(
            help="Model file.", metavar="w.pt", envvar="DPSERVER_MODEL", rich_help_panel=_WHAT, show_default=False
        ),
    ],
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            help="TCP port; 31415 unless another endpoint is named.",
            envvar="DPSERVER_PORT",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            "-a",
            "--address",
            help="Host of that port, localhost by default; with -u the name of a unix socket.",
            envvar="DPSERVER_HOST",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    unix: Annotated[
        str | None,
        typer.Option(
            help="Name of a unix socket, as in i-PI's <address>, or an absolute path.",
            envvar="DPSERVER_UNIX",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    is_unix: Annotated[
        bool,
        typer.Option(
            "-u",
            help="Take --address for a unix socket, as i-PI's drivers do.",
            rich_help_panel=_WHERE,
            envvar="DPSERVER_USE_UNIX",
        ),
    ] = False,
    prefix: Annotated[
        str,
        typer.Option(
            "--sockets-prefix",
            "-S",
            help="What the path of a unix socket starts with.",
            envvar="DPSERVER_SOCKETS_PREFIX",
            rich_help_panel=_WHERE,
        ),
    ] = "/tmp/ipi_",
    connect: Annotated[
        list[str] | None,
        typer.Option(
            help="inet:HOST:PORT or unix:NAME, each with @TEMPLATE if wanted; may be repeated.",
            metavar="ADDRESS",
            envvar="DPSERVER_CONNECT",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    connections: Annotated[
        str,
        typer.Option(
            help="Connections to each endpoint: a number, or auto (one).",
            metavar="N|auto",
            envvar="DPSERVER_CONNECTIONS",
            rich_help_panel=_WHERE,
        ),
    ] = "auto",
    template: Annotated[
        Path | None,
        typer.Option(
            help="Structure file with the atoms in the peer's order.",
            metavar="FILE",
            envvar="DPSERVER_TEMPLATE",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    species: Annotated[
        str | None,
        typer.Option(
            help="Species of the atoms in the peer's order, repeated as needed: 'O H H'.",
            envvar="DPSERVER_SPECIES",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="DPSERVER_DEVICE", rich_help_panel=_WHAT)
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="double, mixed or single; the model's own by default.",
            envvar="DPSERVER_PRECISION",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    is_once: Annotated[
        bool,
        typer.Option("--once", help="Leave when the peer has left.", envvar="DPSERVER_ONCE", rich_help_panel=_HOW),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Give up when nobody has listened for so long.",
            metavar="SECONDS",
            envvar="DPSERVER_TIMEOUT",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.", envvar="DPSERVER_LOG_LEVEL", rich_help_panel=_HOW)
    ] = "info",
    is_log_json: Annotated[
        bool,
        typer.Option(
            "--log-json", help="Log JSON, one object a line.", envvar="DPSERVER_LOG_JSON", rich_help_panel=_HOW
        ),
    ] = False,
) -> None:
    """Serve a model to the MD code that listens for forces over the i-PI socket; dial again whenever it has gone."""
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"--timeout must be positive seconds, got {timeout:g}")
    endpoints = _endpoints(port, host, unix, is_unix, prefix, connect or [])
    targets = _targets(endpoints, _order(template, species), _connections(connections))

    import dpserver
    from dpserver.daemon import Daemon
    from dpserver.daemon.logs import set_up_logging
    from dpserver.daemon.signals import stop_on_signals

    set_up_logging(log_level, is_json=is_log_json)
    logger = logging.getLogger("dpserver")
    potential = dpserver.load(model, device=device, precision=precision)
    _check_orders(targets, potential.species)
    logger.info("%s: knows %s, cutoff %g Å", model, ", ".join(potential.species), potential.rcut)
    daemon = Daemon(potential, targets, is_once=is_once, timeout=timeout)
    with stop_on_signals(daemon.stop):
        code = daemon.run()
    if code:
        raise typer.Exit(code)


def _endpoints(
    port: int | None, host: str | None, unix: str | None, is_unix: bool, prefix: str, connect: Sequence[str]
) -> list[tuple[Endpoint, Path | None]]:
    """Everything named on the command line, with its own template; localhost:31415 where nothing is named."""
    from dpserver.transport.endpoint import DEFAULT_HOST, DEFAULT_PORT, inet_endpoint, parse_endpoint, unix_endpoint

    endpoints = [parse_endpoint(text, prefix) for text in connect]
    if unix is not None:
        endpoints.append((unix_endpoint(unix, prefix), None))
    if is_unix:  # i-PI's drivers ignore the port then, and their address is localhost too
        endpoints.append((unix_endpoint(host or DEFAULT_HOST, prefix), None))
    elif host is not None or port is not None or not endpoints:
        inet = inet_endpoint(DEFAULT_HOST if host is None else host, DEFAULT_PORT if port is None else port)
        endpoints.append((inet, None))
    names = [str(endpoint) for endpoint, _ in endpoints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"endpoint {twice[0]} is named twice; --connections N opens several connections to it")
    return endpoints


def _order(template: Path | None, species: str | None) -> Order | None:
    from dpserver.engine import Order

    if template is not None and species is not None:
        raise ConfigError("--template and --species both give the order of the atoms; give one of them")
    if template is not None:
        return Order.from_file(template, "--template")
    return None if species is None else Order.from_text(species, "--species")


def _connections(text: str) -> int:
    if text == "auto":
        return 1
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_CONNECTIONS):
        raise ConfigError(f"--connections must be auto or a number from 1 to {_MOST_CONNECTIONS}, got {text!r}")
    return int(text)


def _targets(endpoints: Sequence[tuple[Endpoint, Path | None]], order: Order | None, connections: int) -> list[Target]:
    from dpserver.daemon import Target
    from dpserver.engine import Order

    return [
        Target(
            endpoint,
            endpoint.resolve(),
            order if template is None else Order.from_file(template, f"the template of {endpoint}"),
            connections,
        )
        for endpoint, template in endpoints
    ]


def _check_orders(targets: Sequence[Target], species: Sequence[str]) -> None:
    """Refuse at once what the first frame would be refused for."""
    for target in targets:
        try:
            if target.order is not None:
                target.order.types(species)
        except StructureError as error:
            raise ConfigError(str(error)) from None
