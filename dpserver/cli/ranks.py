"""`mpirun -n N dpserver …`: rank 0 reads the command line and serves, the others compute for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dpserver import guard
from dpserver.cli import beside
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpserver.daemon.team import Service, Team
    from dpserver.engine import Budget, ForceModel
    from dpserver.models.backends import Loaded
    from dpserver.monitor import Meter
    from dpserver.parallel.communicator import Place
    from dpserver.parallel.crew import Crew
    from dpserver.transport.ffmpi import DriverGroup

logger = logging.getLogger(__name__)

WAYS: Final = ("auto", "beads", "space")

LOST: Final = 5
"""Exit code where a device or a rank is lost."""

_AS_LONG_AS_RANK_0: Final = 3.0
"""s: until rank 0 has said what is wrong."""

_FOR_ANY_NUMBER: Final = ("serve", "info", "status")
"""Commands that a job may be started with: one shares its work out, the others only tell something."""


class ForeignJobError(ConfigError):
    """There is no rank 0 of ours that could say what is wrong."""


_current: Team | None = None


def check_decompose(text: str) -> None:
    """Refuse another way to use ranks than there is.

    Raises:
        ConfigError: the name is unknown.
    """
    if text not in WAYS:
        raise ConfigError(f"--decompose must be {', '.join(WAYS)}; got {text!r}")


def check_cuttable(decompose: str, model: object) -> None:
    """Refuse to cut structures for a model that can only be given whole ones, before anything is made for it.

    Raises:
        ConfigError: they were to be cut.
    """
    from dpserver.parallel.plan import Decompose
    from dpserver.parallel.ranked import check_decompose

    check_decompose(Decompose(decompose), model)


def check_command(command: str) -> None:
    """Refuse a command of which each process of a job would run a copy; rank 0 says so, the others leave.

    Raises:
        ConfigError: such a command was given, to rank 0 of several.
    """
    if guard.job_size() < 2 or command in _FOR_ANY_NUMBER:
        return
    if guard.job_rank() > 0:
        time.sleep(_AS_LONG_AS_RANK_0)
        raise SystemExit(2)
    raise ConfigError(
        f"dpserver {command} is for one process, and {guard.job_size()} were started, each of which would do all of it "
        "and write the same files; run it without mpirun or srun, for only dpserver serve shares its work out"
    )


def join() -> Team | None:
    """Meet the other ranks, where `mpirun` has started more than this one.

    Raises:
        ConfigError: there is no MPI, or another one than that of `mpirun`.
        ForeignJobError: rank 0 is another program.
    """
    if guard.job_size() < 2:
        return None
    from dpserver.parallel.mpi import join_all, load_mpi

    mpi = load_mpi()
    if mpi.COMM_WORLD.Get_attr(mpi.APPNUM):
        raise ForeignJobError(
            "this process belongs to the second program of an MPI job; give --mpi-driver to serve an <ffmpi> of i-PI "
            "that is the first, or start all ranks as one program: mpirun -n N dpserver …"
        )
    group = join_all(mpi)
    if group.size != guard.job_size():
        library = mpi.Get_library_version().split("\n")[0].strip()
        raise ConfigError(
            f"mpirun has started {guard.job_size()} processes, and MPI shows {group.size}: mpirun is of another MPI "
            f"than mpi4py, which has {library}"
        )
    from dpserver.daemon.team import Team

    return _keep(Team(group))


def join_driver(name: str, size: int) -> tuple[DriverGroup, Team] | tuple[None, None]:
    """Meet i-PI in its MPI job, and the other ranks of this driver; one alone does so when it has loaded its model.

    Raises:
        ConfigError: there is no MPI, no i-PI in this job, or its ranks do not make up groups of that size.
    """
    if size == 1:
        return None, None
    from dpserver.daemon.team import Team
    from dpserver.parallel.mpi import load_mpi
    from dpserver.transport.ffmpi import DriverGroup, abort_job

    channel = DriverGroup(load_mpi(), name, size=size)
    return channel, _keep(Team(channel.group, abort_job))


def _keep(team: Team) -> Team:
    """Remember the team of this process, for `leave`."""
    global _current
    _current = team
    return team


def leave(code: int) -> None:
    """End all ranks that serve together with an exit code; do nothing where there are none."""
    if _current is not None:
        _current.leave(code)


def work() -> NoReturn:
    """Be a rank other than 0, from start to end; what there is to say, rank 0 says."""
    from dpserver.daemon.logs import set_up_logging

    set_up_logging(os.environ.get("DPSERVER_LOG_LEVEL", "error"), is_json=False)
    try:
        team = join()
    except ForeignJobError:
        raise
    except ConfigError:  # as rank 0 has met too
        time.sleep(_AS_LONG_AS_RANK_0)
        raise SystemExit(2) from None
    if team is not None:
        work_for(team)
    raise SystemExit(0)


def work_for(team: Team) -> None:
    """Compute for rank 0 until it is over."""
    service: Service = team.share(None)
    team.work(service, _load)


def service_of(
    device: str,
    precision: str | None,
    threads: int | None,
    backend: str,
    path: Path,
    dipole: Path | None = None,
    polar: Path | None = None,
    *,
    has_born_charges: bool = False,
    table_error: float = TABLE_ERROR,
) -> Service:
    """What the other ranks have to know to load the models."""
    from dpserver.daemon.team import Service
    from dpserver.models.backends import backend_of

    others = tuple((kind, str(file)) for kind, file in (("dipole", dipole), ("polar", polar)) if file is not None)
    name = backend_of(path, backend)
    return Service(device, precision, threads, name, str(path), others, has_born_charges, table_error)


def _load(files: Sequence[bytes], service: Service, place: Place, places: Sequence[Place]) -> ForceModel:
    """Make the model of a rank other than 0."""
    from dpserver.models import checkpoint

    device, threads = service.device_of(place), service.threads_of(place, places)
    model: Loaded
    if service.backend == "native":
        values = checkpoint.from_bytes(files[0])
        model = checkpoint.prepare(values, service.path, device, service.precision, threads, service.table_error)
    else:
        model = _read(service, device, threads)
    return _ready(model, beside.accompanied(model, service, device, list(map(checkpoint.from_bytes, files[1:]))))


def _read(service: Service, device: str, threads: int | None) -> Loaded:
    """Load the model from its file, for what is served: the same in all ranks."""
    import dpserver
    from dpserver.models.deepmd_kit import DeepPotModel

    model = dpserver.load(
        service.path, device, service.precision, threads, service.table_error, backend=service.backend
    )
    if isinstance(model, DeepPotModel):
        model.has_atom_energy = False  # no message has a place for them
    return model


@contextmanager
def loaded(team: Team | None, service: Service) -> Iterator[tuple[Loaded, list[dict[str, Any]], Crew | None]]:
    """Load the model, in all ranks where there are several, and let them go at the end; for rank 0.

    After an error they are not let go here: once it has been shown, `whole_job` has all leave with its exit code.

    Yields:
        The model of this rank, what the files of the models beside it hold, and the other ranks; None for those where
        there are none.
    """
    from dpserver.models import checkpoint

    if team is None:
        alone = _read(service, service.device, service.threads)
        yield alone, [checkpoint.read(path) for _, path in service.beside], None
        return
    crew = team.crew()
    team.share(service)
    device, threads = service.device_of(team.me), service.threads_of(team.me, team.places)
    model: Loaded
    others = [checkpoint.read(path) for _, path in service.beside]
    files = list(map(checkpoint.to_bytes, others))
    if service.backend == "native":
        values = checkpoint.read(service.path)
        crew.send_model(checkpoint.to_bytes(values), *files)
        model = checkpoint.prepare(values, service.path, device, service.precision, threads, service.table_error)
    else:
        crew.send_model(b"", *files)
        model = _read(service, device, threads)
    yield model, others, crew
    team.finish(crew)


def together(team: Team | None, model: Loaded, others: Sequence[Mapping[str, Any]], service: Service) -> ForceModel:
    """The model with those beside it, for rank 0; nothing has been made for their evaluation yet."""
    device = service.device if team is None else service.device_of(team.me)
    return beside.accompanied(model, service, device, others)


def spread(
    team: Team | None,
    crew: Crew | None,
    model: Loaded,
    whole: ForceModel,
    service: Service,
    decompose: str,
    meter: Meter,
) -> ForceModel:
    """What serves: the model with those beside it, or all of them over all ranks, once they have loaded theirs.

    Args:
        team: of all ranks, or None.
        crew: the other ranks, or None.
        model: of energies.
        whole: the same with those beside it, see `together`.
        service: what is served.
        decompose: how structures are spread.
        meter: is told.
    """
    from dpserver.daemon.team import shared_devices
    from dpserver.parallel.plan import Decompose
    from dpserver.parallel.ranked import RankedModel

    served = _ready(model, whole)
    if team is None or crew is None:
        if decompose == Decompose.SPACE:
            logger.info("--decompose space: there is one process, and nothing to cut; start several by mpirun -n N")
        return served
    about = [service.describe(team.me, team.places), *crew.await_model()]
    counts = ", ".join(f"{about.count(text)} with {text}" for text in dict.fromkeys(about))
    logger.info("%s: %s", team, counts)
    for text in shared_devices(team.places, about):
        logger.info("%s", text)
    found = RankedModel(served, crew, Decompose(decompose))
    found.warm_up()
    meter.ranks = lambda: f"{len(team.places)} ranks: {found.choice}"
    return found


def _ready(model: Loaded, whole: ForceModel) -> ForceModel:
    """A model with those beside it, ready to answer; what is too large for the memory is evaluated in parts."""
    from dpserver.engine import Accompanied
    from dpserver.parallel.pieces import Pieces

    model.warm_up()
    if isinstance(whole, Accompanied):
        whole.warm_up()
    return Pieces(whole)


def budget_of(team: Team | None) -> Budget:
    """Bounds of a batch: each rank adds what one holds."""
    from dpserver.engine import Budget

    n = 1 if team is None else len(team.places)
    return Budget(n * Budget.frames, n * Budget.atoms)


@contextmanager
def stopping(team: Team | None, stop: Callable[[], None], lose: Callable[[DeviceError], None]) -> Iterator[None]:
    """While a server runs, let signals stop it, and other ranks; see `Team.serving`."""
    from dpserver.daemon.signals import stop_on_signals

    if team is None and guard.asked_at is not None:  # while the model was loaded
        stop()
    with stop_on_signals(stop) if team is None else team.serving(stop, lose):
        yield
