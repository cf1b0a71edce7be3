"""`dpserver serve`: load a model, dial, and answer for ever."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpserver.cli import mpi
from dpserver.errors import ConfigError, StructureError

if TYPE_CHECKING:
    from dpserver.daemon import Target
    from dpserver.engine import DeviationWatch, Order
    from dpserver.ipi import Extras
    from dpserver.models.committee import Committee
    from dpserver.models.potential import Potential
    from dpserver.transport import Endpoint

_WHERE = "Where the peer listens"
_WHAT = "What to serve"
_COMMITTEE = "Where a committee disagrees"
_HOW = "How long, how loud"


def serve(
    context: typer.Context,
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
    is_shm: Annotated[
        bool,
        typer.Option(
            "--shm",
            help="Take --address for a unix socket with shared memory, as i-PI's drivers do.",
            rich_help_panel=_WHERE,
            envvar="DPSERVER_SHM",
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
            help="inet:HOST:PORT, unix:NAME or shm:NAME, each with @TEMPLATE if wanted; may be repeated.",
            metavar="ADDRESS",
            envvar="DPSERVER_CONNECT",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    connections: Annotated[
        str,
        typer.Option(
            help="Connections to each endpoint: a number, or auto: as many as the peer keeps busy.",
            metavar="N|auto",
            envvar="DPSERVER_CONNECTIONS",
            rich_help_panel=_WHERE,
        ),
    ] = "auto",
    is_mpi_driver: Annotated[
        bool,
        typer.Option(
            "--mpi-driver",
            help="Serve an <ffmpi> of i-PI in one MPI job: mpirun -n 1 i-pi input.xml : -n 1 dpserver --mpi-driver ….",
            envvar="DPSERVER_MPI_DRIVER",
            rich_help_panel=_WHERE,
        ),
    ] = False,
    mpi_name: Annotated[
        str,
        typer.Option(
            help="Name of that <ffmpi>, where i-PI's input has several.",
            metavar="NAME",
            envvar="DPSERVER_MPI_NAME",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = "",
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
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that compute on the CPU.",
            metavar="N",
            envvar="DPSERVER_THREADS",
            rich_help_panel=_WHAT,
            show_default="one for each core",
        ),
    ] = None,
    extras: Annotated[
        str,
        typer.Option(
            help="Send what a committee says beside its mean: auto (to i-PI), on (to every peer) or off.",
            metavar="auto|on|off",
            envvar="DPSERVER_EXTRAS",
            rich_help_panel=_COMMITTEE,
        ),
    ] = "auto",
    warn_deviation: Annotated[
        float | None,
        typer.Option(
            help="Warn of structures on which a committee's forces deviate by more.",
            metavar="eV/Å",
            envvar="DPSERVER_WARN_DEVIATION",
            rich_help_panel=_COMMITTEE,
            show_default=False,
        ),
    ] = None,
    save_deviating: Annotated[
        Path | None,
        typer.Option(
            help="Append these structures to this extended XYZ file; needs --warn-deviation.",
            metavar="FILE",
            envvar="DPSERVER_SAVE_DEVIATING",
            rich_help_panel=_COMMITTEE,
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
    report: Annotated[
        float,
        typer.Option(
            help="Log a line with figures so often, at first sooner, while there is work; 0 for none.",
            metavar="SECONDS",
            envvar="DPSERVER_REPORT",
            rich_help_panel=_HOW,
        ),
    ] = 60.0,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Serve /metrics for Prometheus, /healthz and /readyz.",
            metavar="HOST:PORT",
            envvar="DPSERVER_METRICS",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = None,
    control: Annotated[
        str,
        typer.Option(
            help="Unix socket for dpserver status; auto is found by itself, off is none.",
            metavar="PATH|auto|off",
            envvar="DPSERVER_CONTROL",
            rich_help_panel=_HOW,
        ),
    ] = "auto",
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
    if save_deviating is not None and warn_deviation is None:
        raise ConfigError("--save-deviating needs --warn-deviation, which says how far is too far, in eV/Å")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"--timeout must be positive seconds, got {timeout:g}")
    if report != 0 and not report >= 1:
        raise ConfigError(f"--report must be at least 1 second, or 0 for no such lines; got {report:g}")
    order, whom = _order(template, species), _extras(extras)
    targets = []
    if is_mpi_driver:
        mpi.check_options(context)
    else:
        mpi.check_alone()
        endpoints = _endpoints(port, host, unix, is_unix, is_shm, prefix, connect or [])
        targets = _targets(endpoints, order, _connections(connections), whom)

    import dpserver
    from dpserver.daemon import Daemon
    from dpserver.daemon.logs import set_up_logging
    from dpserver.daemon.mpi_driver import MPIDriver
    from dpserver.daemon.signals import stop_on_signals
    from dpserver.models.memory import memory_in_use
    from dpserver.monitor import Meter
    from dpserver.monitor.outlets import open_outlets

    set_up_logging(log_level, is_json=is_log_json)
    logger = logging.getLogger("dpserver")
    meter = Meter()
    meter.about["model"] = str(model)
    with open_outlets(meter, control, metrics):
        potential = dpserver.load(model, device=device, precision=precision, threads=threads)
        _check_orders([order, *(target.order for target in targets)], potential.species)
        members = f", committee of {len(potential.members)}" if isinstance(potential, dpserver.Committee) else ""
        logger.info("%s: knows %s, cutoff %g Å%s", model, ", ".join(potential.species), potential.rcut, members)
        potential.warm_up()
        meter.about["device"] = str(potential.device)
        meter.memory = lambda: memory_in_use(potential.device)
        watch = _watch(potential, warn_deviation, save_deviating)
        pace = report or None
        server: Daemon | MPIDriver
        if is_mpi_driver:
            server = MPIDriver(potential, order, mpi_name=mpi_name, extras=whom, watch=watch, meter=meter, report=pace)
        else:
            server = Daemon(potential, targets, is_once=is_once, timeout=timeout, watch=watch, meter=meter, report=pace)
        with stop_on_signals(server.stop), watch or contextlib.nullcontext():
            code = server.run()
    if code:
        raise typer.Exit(code)


def _endpoints(
    port: int | None,
    host: str | None,
    unix: str | None,
    is_unix: bool,
    is_shm: bool,
    prefix: str,
    connect: Sequence[str],
) -> list[tuple[Endpoint, Path | None]]:
    """Everything named on the command line, with its own template; localhost:31415 where nothing is named."""
    from dpserver.transport.endpoint import (
        DEFAULT_HOST,
        DEFAULT_PORT,
        inet_endpoint,
        parse_endpoint,
        shm_endpoint,
        unix_endpoint,
    )

    endpoints = [parse_endpoint(text, prefix) for text in connect]
    if unix is not None:
        endpoints.append((unix_endpoint(unix, prefix), None))
    if is_unix or is_shm:  # i-PI's drivers ignore the port then, and their address is localhost too
        make = shm_endpoint if is_shm else unix_endpoint
        endpoints.append((make(host or DEFAULT_HOST, prefix), None))
    elif host is not None or port is not None or not endpoints:
        inet = inet_endpoint(DEFAULT_HOST if host is None else host, DEFAULT_PORT if port is None else port)
        endpoints.append((inet, None))
    names = [str(endpoint) for endpoint, _ in endpoints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"endpoint {twice[0]} is named twice; --connections N opens several connections to it")
    return endpoints


def _watch(
    model: Potential | Committee, warn_deviation: float | None, save_deviating: Path | None
) -> DeviationWatch | None:
    """What looks at the members' forces, if it has been asked for."""
    from dpserver.engine import DeviationWatch, StructureFile
    from dpserver.models.committee import Committee

    if warn_deviation is None:
        return None
    if not isinstance(model, Committee) or len(model.members) < 2:
        raise ConfigError(
            "--warn-deviation needs a committee, and this model file holds a single model; `dpserver committee` makes "
            "one of several models"
        )
    kept = None if save_deviating is None else StructureFile(save_deviating, model.species)
    return DeviationWatch(warn_deviation, model.species, kept)


def _order(template: Path | None, species: str | None) -> Order | None:
    from dpserver.engine import Order

    if template is not None and species is not None:
        raise ConfigError("--template and --species both give the order of the atoms; give one of them")
    if template is not None:
        return Order.from_file(template, "--template")
    return None if species is None else Order.from_text(species, "--species")


def _connections(text: str) -> int | None:
    from dpserver.daemon.pool import MAX_CONNECTIONS

    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CONNECTIONS):
        raise ConfigError(f"--connections must be auto or a number from 1 to {MAX_CONNECTIONS}, got {text!r}")
    return int(text)


def _extras(text: str) -> Extras:
    from dpserver.ipi import Extras

    if text not in set(Extras):
        raise ConfigError(f"--extras must be {', '.join(Extras)}; got {text!r}")
    return Extras(text)


def _targets(
    endpoints: Sequence[tuple[Endpoint, Path | None]], order: Order | None, connections: int | None, extras: Extras
) -> list[Target]:
    from dpserver.daemon import Target
    from dpserver.engine import Order

    return [
        Target(
            endpoint,
            endpoint.resolve(),
            order if template is None else Order.from_file(template, f"the template of {endpoint}"),
            connections,
            extras,
        )
        for endpoint, template in endpoints
    ]


def _check_orders(orders: Sequence[Order | None], species: Sequence[str]) -> None:
    """Refuse at once what the first frame would be refused for."""
    for order in orders:
        try:
            if order is not None:
                order.types(species)
        except StructureError as error:
            raise ConfigError(str(error)) from None
