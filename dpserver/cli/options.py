"""The options of `dpserver serve`, and those that other commands share with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_WHERE = "Where the peer listens"
_WHAT = "Which model, which atoms"
_COMMITTEE = "Where a committee disagrees"
_BESIDE = "What to say beside the forces"
_HOW = "How long, how loud"


def check_threads(count: int | None) -> int | None:
    """Refuse a number of threads before anything is read."""
    from dpserver.kernels.threads import check_count

    if count is not None:
        check_count(count)
    return count


ServedModel = Annotated[
    Path | None,
    typer.Option(
        help="Model file, of dpserver, of DeePMD-kit or of sgdml (.npz).",
        metavar="w.pt",
        envvar="DPSERVER_MODEL",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="native, or deepmd: let an installed DeePMD-kit evaluate its own model file, of any kind.",
        metavar="NAME",
        envvar="DPSERVER_BACKEND",
        rich_help_panel=_WHAT,
    ),
]
DpIpi = Annotated[
    Path | None,
    typer.Option(
        "--dp-ipi",
        help="Input file of DeePMD-kit's dp_ipi, in place of --model, an address and --template.",
        metavar="water.json",
        envvar="DPSERVER_DP_IPI",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        "-p",
        help="TCP port; 31415 unless another endpoint is named.",
        envvar="DPSERVER_PORT",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Host = Annotated[
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
]
Unix = Annotated[
    str | None,
    typer.Option(
        help="Name of a unix socket, as in i-PI's <address>, or an absolute path.",
        envvar="DPSERVER_UNIX",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
UseUnix = Annotated[
    bool,
    typer.Option(
        "-u",
        help="Take --address for a unix socket, as i-PI's drivers do.",
        rich_help_panel=_WHERE,
        envvar="DPSERVER_USE_UNIX",
    ),
]
UseShm = Annotated[
    bool,
    typer.Option(
        "--shm",
        help="Take --address for a unix socket with shared memory, as i-PI's drivers do.",
        rich_help_panel=_WHERE,
        envvar="DPSERVER_SHM",
    ),
]
SocketsPrefix = Annotated[
    str,
    typer.Option(
        "--sockets-prefix",
        "-S",
        help="What the path of a unix socket starts with.",
        envvar="DPSERVER_SOCKETS_PREFIX",
        rich_help_panel=_WHERE,
    ),
]
Connect = Annotated[
    list[str] | None,
    typer.Option(
        help="inet:HOST:PORT, unix:NAME or shm:NAME, each with @TEMPLATE if wanted; may be repeated.",
        metavar="ADDRESS",
        envvar="DPSERVER_CONNECT",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Connections = Annotated[
    str,
    typer.Option(
        help="Connections to each endpoint: a number, or auto: as many as the peer keeps busy.",
        metavar="N|auto",
        envvar="DPSERVER_CONNECTIONS",
        rich_help_panel=_WHERE,
    ),
]
MpiDriver = Annotated[
    bool,
    typer.Option(
        "--mpi-driver",
        help="Serve an <ffmpi> of i-PI in one MPI job: mpirun -n 1 i-pi input.xml : -n 1 dpserver --mpi-driver ….",
        envvar="DPSERVER_MPI_DRIVER",
        rich_help_panel=_WHERE,
    ),
]
MpiName = Annotated[
    str,
    typer.Option(
        help="Name of that <ffmpi>, where i-PI's input has several.",
        metavar="NAME",
        envvar="DPSERVER_MPI_NAME",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Template = Annotated[
    Path | None,
    typer.Option(
        help="Structure file with the atoms in the peer's order.",
        metavar="FILE",
        envvar="DPSERVER_TEMPLATE",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Species = Annotated[
    str | None,
    typer.Option(
        help="Species of the atoms in the peer's order, repeated as needed: 'O H H'.",
        envvar="DPSERVER_SPECIES",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="DPSERVER_DEVICE", rich_help_panel=_WHAT)
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        "--model-branch",
        help="Which model of a multi-task checkpoint.",
        metavar="NAME",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="double, mixed or single; the model's own by default.",
        envvar="DPSERVER_PRECISION",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads that compute on the CPU.",
        metavar="N",
        callback=check_threads,
        envvar="DPSERVER_THREADS",
        rich_help_panel=_WHAT,
        show_default="one for each core, under mpirun its share of them",
    ),
]
TableError = Annotated[
    float,
    typer.Option(
        help="Error of forces that tables of embedding nets may cause, relative to their typical size.",
        metavar="E",
        envvar="DPSERVER_TABLE_ERROR",
        rich_help_panel=_WHAT,
    ),
]
Decompose = Annotated[
    str,
    typer.Option(
        help="Under mpirun: beads, whole structures over ranks; space, each in parts over all ranks; auto, the faster.",
        metavar="auto|beads|space",
        envvar="DPSERVER_DECOMPOSE",
        rich_help_panel=_WHAT,
    ),
]
GroupSize = Annotated[
    int,
    typer.Option(
        help="With --mpi-driver: so many ranks together are one driver of i-PI.",
        metavar="N",
        min=1,
        envvar="DPSERVER_GROUP_SIZE",
        rich_help_panel=_WHERE,
    ),
]
Extras = Annotated[
    str,
    typer.Option(
        help="Send dipoles, and what a committee says beside its mean: auto (to i-PI), on (to every peer) or off.",
        metavar="auto|on|off",
        envvar="DPSERVER_EXTRAS",
        rich_help_panel=_BESIDE,
    ),
]
WarnDeviation = Annotated[
    float | None,
    typer.Option(
        help="Warn of structures on which a committee's forces deviate by more.",
        metavar="eV/Å",
        envvar="DPSERVER_WARN_DEVIATION",
        rich_help_panel=_COMMITTEE,
        show_default=False,
    ),
]
SaveDeviating = Annotated[
    Path | None,
    typer.Option(
        help="Append these structures to this extended XYZ file; needs --warn-deviation.",
        metavar="FILE",
        envvar="DPSERVER_SAVE_DEVIATING",
        rich_help_panel=_COMMITTEE,
        show_default=False,
    ),
]
FParam = Annotated[
    str | None,
    typer.Option(
        "--fparam",
        help="Parameters of each structure, for a model that takes such, where the peer gives none.",
        metavar="0.5,1.2",
        envvar="DPSERVER_FPARAM",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
AParam = Annotated[
    Path | None,
    typer.Option(
        "--aparam",
        help="Parameters of each atom, for a model that takes such: numbers of shape (n_atoms, n).",
        metavar="FILE.npy",
        envvar="DPSERVER_APARAM",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Dipole = Annotated[
    Path | None,
    typer.Option(
        help="Model of dipoles, in e Å; the dipole is sent beside the forces.",
        metavar="FILE",
        envvar="DPSERVER_DIPOLE",
        rich_help_panel=_BESIDE,
        show_default=False,
    ),
]
Polar = Annotated[
    Path | None,
    typer.Option(
        help="Model of polarizabilities, in Å³; the polarizability is sent beside the forces.",
        metavar="FILE",
        envvar="DPSERVER_POLAR",
        rich_help_panel=_BESIDE,
        show_default=False,
    ),
]
BornCharges = Annotated[
    bool,
    typer.Option(
        "--born-charges",
        help="With --dipole: send its derivative by the positions too, the BEC of i-PI's driven dynamics.",
        envvar="DPSERVER_BORN_CHARGES",
        rich_help_panel=_BESIDE,
    ),
]
Once = Annotated[
    bool,
    typer.Option("--once", help="Leave when the peer has left.", envvar="DPSERVER_ONCE", rich_help_panel=_HOW),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Give up when nobody has listened for so long.",
        metavar="SECONDS",
        envvar="DPSERVER_TIMEOUT",
        rich_help_panel=_HOW,
        show_default=False,
    ),
]
Report = Annotated[
    float,
    typer.Option(
        help="Log a line with figures so often, at first sooner, while there is work; 0 for none.",
        metavar="SECONDS",
        envvar="DPSERVER_REPORT",
        rich_help_panel=_HOW,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="Serve /metrics for Prometheus, /healthz and /readyz.",
        metavar="HOST:PORT",
        envvar="DPSERVER_METRICS",
        rich_help_panel=_HOW,
        show_default=False,
    ),
]
Control = Annotated[
    str,
    typer.Option(
        help="Unix socket for dpserver status; auto is found by itself, off is none.",
        metavar="PATH|auto|off",
        envvar="DPSERVER_CONTROL",
        rich_help_panel=_HOW,
    ),
]
LogLevel = Annotated[
    str, typer.Option(help="debug, info, warning or error.", envvar="DPSERVER_LOG_LEVEL", rich_help_panel=_HOW)
]
LogJson = Annotated[
    bool,
    typer.Option("--log-json", help="Log JSON, one object a line.", envvar="DPSERVER_LOG_JSON", rich_help_panel=_HOW),
]
