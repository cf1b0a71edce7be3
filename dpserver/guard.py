"""A process that stands by a rank of an MPI job, and says what has become of it when the rank cannot any more.

A process that is killed says nothing, and the launcher of an MPI job that notices ends all the others at once, before
any of them could. So the process that the launcher has started is this one: it does nothing but wait for its child,
which is the rank. When that is killed there is somebody to say so, on the line that leads to rank 0 or, where there is
none, on stderr; and somebody to leave with an exit code that is known, after the others had a moment to close what they
have open.

Imports nothing but the standard library until the end: it forks before there are threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import Final

LOST: Final = 5
"""Exit code of a rank that is killed."""

_DIED: Final = b"D"
"""What a line of the connection to rank 0 begins with that says how a rank has died."""

_GRACE: Final = 5.0
"""s: what the other ranks have to leave in good order before the launcher notices."""

_STAND_IN_SECONDS: Final = 5
_LAST_WORDS: Final = 0.2
"""s: what a launcher has to pass on before a process ends, or it may drop the message that says why."""

MET: Final = 1
LEAVING: Final = 2
"""What the rank lets this process know: all ranks of the job are connected | and all know that they are to leave."""

_HYDRA: Final = "HYDI_CONTROL_FD"
_PMI: Final = "PMI_FD"
_FINALIZE: Final = b"cmd=finalize\n"
_SECONDS_TO_SIGN_OFF: Final = 1.0

_SIGNALLED: Final = 128
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT)
_OPEN_MPI: Final = "OMPI_COMM_WORLD_SIZE"
_RANKS: Final = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZES: Final = ("PMI_SIZE", _OPEN_MPI, "SLURM_STEP_NUM_TASKS")
"""Where MPICH's launcher, Open MPI's and Slurm tell a process how many there are."""

ECHO_SECONDS: Final = 1.0
"""A launcher may pass a signal on to the group of processes and to each: then it comes twice."""

asked_at: float | None = None
"""When a signal has asked this rank to end before it could be told in good order, on the monotonic clock."""

line: socket.socket | None = None
"""What the rank is to connect to rank 0 with; the process that stands by holds its other end of the same."""

_shared: mmap.mmap | None = None


def mark(state: int) -> None:
    """Let the process that stands by this one know how far the job is: `MET` or `LEAVING`."""
    if _shared is not None:
        _shared[0] = state


def job_size() -> int:
    """Processes that were started together with this one, itself included."""
    return max(_number(name, 1) for name in _SIZES)


def job_rank() -> int:
    """Which of them this is."""
    return next((_number(name, 0) for name in _RANKS if name in os.environ), 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


def stand_by() -> None:
    """Go on in a child of this process; it leaves with the exit code of the child, and never returns.

    Where the system is not Linux there is no child, and nobody stands by.
    """
    global line, _shared
    if sys.platform != "linux":
        return
    line = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _shared = mmap.mmap(-1, 1)
    guard = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until there is somebody to take note of them
    child = os.fork()
    if not child:
        # A signal from a terminal is for the group of processes, and would come twice: by itself, and passed on.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(LOST)
        _prepare_rank()
        return
    with contextlib.suppress(OSError):  # for the last words of the rank, and for those here
        os._exit(_watch(child))
    os._exit(LOST)


def _prepare_rank() -> None:
    """Until there is somebody to ask for an end in good order, take note that it was asked for."""
    for number in _PASSED_ON:
        signal.signal(number, _note)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Hydra says so that another rank has gone; there are better ways
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _note(number: int, frame: FrameType | None) -> None:
    """Remember the first signal; a second one, and no echo of the first, ends the rank on the spot."""
    global asked_at
    if asked_at is None:
        asked_at = time.monotonic()
    elif time.monotonic() - asked_at > ECHO_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _watch(child: int) -> int:
    """Wait for the rank, and give the exit code to leave with."""
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    state = 0 if _shared is None else _shared[0]
    if code >= 0:
        if code and state == LEAVING:
            _sign_off()
        return code
    if -code in passed:  # a second time
        return _SIGNALLED - code
    if _tell(child, -code) or (state and not job_rank()):  # the others see that rank 0 has gone
        _sign_off()
    return LOST


def _sign_off() -> None:
    """Take leave of MPICH's launcher, in whose place the ranks end one another.

    Once a process has gone that has not, the launcher kills all others, before they have closed what they have open,
    and returns 9 in place of their exit code. A rank that ends MPI does the same as this: a line of the launcher's
    protocol (PMI-1), over the connection that it has given to its processes. Other launchers have ways of their own.
    """
    if _HYDRA not in os.environ or not os.environ.get(_PMI, "").isdigit():
        return
    connection = int(os.environ[_PMI])
    with contextlib.suppress(OSError, ValueError):
        os.write(connection, _FINALIZE)
        if select.select([connection], [], [], _SECONDS_TO_SIGN_OFF)[0]:
            os.read(connection, 256)


def _tell(child: int, number: int) -> bool:
    """Say what has killed the rank; returns whether rank 0 has told all to leave."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    cause = f"was killed by signal {number} ({name}){why}"
    if line is not None:
        try:
            line.sendall(_DIED + cause.encode() + b"\n")
            line.settimeout(_GRACE)
            has_told = bool(line.recv(1))
            time.sleep(_LAST_WORDS)
            return has_told
        except OSError:  # it is not connected: this is rank 0, or the ranks have not met; or rank 0 has gone too
            pass
    who = f"rank {job_rank()} of {job_size()} (process {child} on {socket.gethostname()})"
    os.write(2, f"error: {who} {cause}; ending the whole job\n".encode())
    time.sleep(_LAST_WORDS)
    has_met = line is not None and line.getsockname()[1]  # it listens, or is connected
    if not has_met and _OPEN_MPI not in os.environ:  # whose launcher ends all by itself
        _stand_in()
    return False


def _stand_in() -> None:
    """End the job in place of a rank that the others may be waiting for, as they do when MPI starts."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_STAND_IN_SECONDS)
    with contextlib.suppress(Exception):
        from mpi4py import MPI  # nothing of it is used but this

        MPI.COMM_WORLD.Abort(LOST)
