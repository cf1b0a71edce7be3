"""`dpserver serve`: load a model, dial, and answer for ever."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dpserver.cli import beside, dp_ipi, mpi, options, ranks
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, StructureError

if TYPE_CHECKING:
    from dpserver.daemon import Target
    from dpserver.engine import DeviationWatch, Order, Parameters
    from dpserver.ipi import Extras
    from dpserver.models.backends import Loaded
    from dpserver.transport import Endpoint


def serve(
    context: typer.Context,
    model: options.ServedModel = None,
    backend: options.Backend = "native",
    driver_input: options.DpIpi = None,
    port: options.Port = None,
    host: options.Host = None,
    unix: options.Unix = None,
    is_unix: options.UseUnix = False,
    is_shm: options.UseShm = False,
    prefix: options.SocketsPrefix = "/tmp/ipi_",
    connect: options.Connect = None,
    connections: options.Connections = "auto",
    is_mpi_driver: options.MpiDriver = False,
    mpi_name: options.MpiName = "",
    template: options.Template = None,
    species: options.Species = None,
    fparam: options.FParam = None,
    aparam: options.AParam = None,
    dipole: options.Dipole = None,
    polar: options.Polar = None,
    has_born_charges: options.BornCharges = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    table_error: options.TableError = TABLE_ERROR,
    decompose: options.Decompose = "auto",
    group_size: options.GroupSize = 1,
    extras: options.Extras = "auto",
    warn_deviation: options.WarnDeviation = None,
    save_deviating: options.SaveDeviating = None,
    is_once: options.Once = False,
    timeout: options.Timeout = None,
    report: options.Report = 60.0,
    metrics: options.Metrics = None,
    control: options.Control = "auto",
    log_level: options.LogLevel = "info",
    is_log_json: options.LogJson = False,
) -> None:
    """Serve a model to the MD code that listens for forces over the i-PI socket; dial again whenever it has gone."""
    if save_deviating is not None and warn_deviation is None:
        raise ConfigError("--save-deviating needs --warn-deviation, which says how far is too far, in eV/Å")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"--timeout must be positive seconds, got {timeout:g}")
    if report != 0 and not report >= 1:
        raise ConfigError(f"--report must be at least 1 second, or 0 for no such lines; got {report:g}")
    driver = None if driver_input is None else dp_ipi.read(driver_input)
    if driver is not None:
        dp_ipi.check_options(context)
        model, log_level = driver.model, driver.log_level(context, log_level)
    if model is None:
        raise ConfigError("--model w.pt is missing, which names the model to serve")
    order, whom = _order(template, species) if driver is None else driver.order(), _extras(extras)
    ranks.check_decompose(decompose)
    beside.check_options(extras, dipole, polar, has_born_charges)
    parameters = beside.parameters_of(fparam, aparam)
    targets = []
    if is_mpi_driver:
        mpi.check_options(context)
    else:
        mpi.check_group_size(context)
        endpoints = (
            _endpoints(port, host, unix, is_unix, is_shm, prefix, connect or [])
            if driver is None
            else [(driver.endpoint(prefix), None)]
        )
        targets = _targets(endpoints, order, _connections(connections), whom, parameters)

    from dpserver.daemon import Daemon
    from dpserver.daemon.logs import set_up_logging
    from dpserver.daemon.mpi_driver import MPIDriver
    from dpserver.models.memory import memory_in_use
    from dpserver.monitor import Meter
    from dpserver.monitor.others import warn_of_others
    from dpserver.monitor.outlets import open_outlets

    set_up_logging(log_level, is_json=is_log_json)
    logger = logging.getLogger("dpserver")
    meter = Meter()
    meter.about["model"] = str(model)
    service = ranks.service_of(
        device,
        precision,
        threads,
        backend,
        model,
        dipole,
        polar,
        has_born_charges=has_born_charges,
        table_error=table_error,
    )
    channel, team = ranks.join_driver(mpi_name, group_size) if is_mpi_driver else (None, ranks.join())
    if team is not None and not team.is_leader:
        ranks.work_for(team)
        return
    for target in targets:  # before the model is loaded: another daemon that asks meanwhile is told
        meter.expect(target.endpoint)
    with open_outlets(meter, control, metrics), ranks.loaded(team, service) as (potential, others, crew):
        warn_of_others({str(target.endpoint): target.addresses for target in targets})
        _check_orders([order, *(target.order for target in targets)], potential.species)
        if driver is not None:
            driver.tell(potential.species)
        logger.info("%s: knows %s, %s", model, ", ".join(potential.species), _kind(potential))
        whole = ranks.together(team, potential, others, service)
        beside.check_parameters(parameters, whole)
        if crew is not None:
            ranks.check_cuttable(decompose, whole)
        watch = _watch(potential, warn_deviation, save_deviating)
        meter.about["device"] = str(potential.device)
        meter.memory = lambda: memory_in_use(potential.device)
        served = ranks.spread(team, crew, potential, whole, service, decompose, meter)
        pace = report or None
        server: Daemon | MPIDriver
        if is_mpi_driver:
            server = MPIDriver(
                served,
                order,
                mpi_name=mpi_name,
                channel=channel,
                extras=whom,
                parameters=parameters,
                watch=watch,
                meter=meter,
                report=pace,
            )
        else:
            server = Daemon(
                served,
                targets,
                is_once=is_once,
                timeout=timeout,
                budget=ranks.budget_of(team),
                watch=watch,
                meter=meter,
                report=pace,
            )
        with ranks.stopping(team, server.stop, server.lose), watch or contextlib.nullcontext():
            code = server.run()
        if code == ranks.LOST:  # the others may be at anything: they end with this one, without an order
            raise typer.Exit(code)
    if code:
        raise typer.Exit(code)


def _kind(model: Loaded) -> str:
    """How far a model sees, and what evaluates it where it is no single potential of ours."""
    from dpserver.models.committee import Committee
    from dpserver.models.deepmd_kit import DeepPotModel
    from dpserver.models.gdml import GDMLModel

    if isinstance(model, GDMLModel):
        return f"one molecule of {len(model.template or ())} atoms, evaluated by sgdml {model.version}"
    cutoff = f"cutoff {model.rcut:g} Å"
    if isinstance(model, DeepPotModel):
        return f"{cutoff}, evaluated by DeePMD-kit {model.version}"
    return f"{cutoff}, committee of {len(model.members)}" if isinstance(model, Committee) else cutoff


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


def _watch(model: Loaded, warn_deviation: float | None, save_deviating: Path | None) -> DeviationWatch | None:
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
    endpoints: Sequence[tuple[Endpoint, Path | None]],
    order: Order | None,
    connections: int | None,
    extras: Extras,
    parameters: Parameters,
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
            parameters,
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
