"""The control socket: a unix socket in a directory of this user alone, where a daemon tells how it fares.

Whoever connects is told at once and hung up on; nothing is ever read. One thread serves one client at a time, and no
client for longer than a second.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from dpserver.errors import ConfigError

logger = logging.getLogger(__name__)

CLIENT_SECONDS = 1.0
"""How long a client may take to read."""

PAUSE_SECONDS = 0.02
"""Between two clients: however many come, they take little of the processor from the peers."""

MAX_ANSWER = 1 << 22

_BACKLOG = 16


def directories() -> list[Path]:
    """Name the directories where daemons of this user may keep their control sockets, the best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    fallback = Path(f"/tmp/dpserver-{os.geteuid()}")
    return [Path(runtime) / "dpserver", fallback] if runtime else [fallback]


def default_path() -> Path:
    """Name the control socket of this process, in a directory that is made if need be.

    Raises:
        ConfigError: none of the directories can be used.
    """
    complaints = []
    for directory in directories():
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            _check_private(directory)
        except (OSError, ConfigError) as error:
            complaints.append(str(error))
        else:
            return directory / str(os.getpid())
    raise ConfigError(f"there is no place for a control socket: {'; '.join(complaints)}")


def find_sockets() -> list[Path]:
    """Find what lies in the directories of this user, by process number."""
    found = []
    for directory in directories():
        with contextlib.suppress(OSError, ConfigError):
            _check_private(directory)
            found += [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def ask(path: Path, seconds: float = CLIENT_SECONDS) -> bytes | None:
    """Ask a daemon how it fares.

    Args:
        path: of its control socket; a dead daemon's is removed where it lies in the usual place.
        seconds: how long to wait.

    Returns:
        What it said, nothing if it did not answer in time; None where there is no daemon.
    """
    deadline = time.monotonic() + seconds
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(str(path))
            while chunk := sock.recv(1 << 16):
                answer += chunk
                sock.settimeout(max(1e-3, deadline - time.monotonic()))
                if len(answer) > MAX_ANSWER:
                    return b""
        except ConnectionRefusedError:
            if path.parent in directories():
                with contextlib.suppress(OSError):
                    path.unlink()
            return None
        except (TimeoutError, BlockingIOError):
            return b""
        except OSError:
            return None
    return answer


class ControlServer:
    """Tells whoever connects to a unix socket how the daemon fares.

    Args:
        path: of the socket; one that a dead daemon has left is replaced.
        answer: gives what to say, quickly; called from the server's thread.

    Raises:
        ConfigError: there cannot be such a socket, or a living daemon has it.
    """

    def __init__(self, path: Path, answer: Callable[[], bytes]) -> None:
        self.path = path
        self._answer = answer
        self._listener = _listen(path)
        self._stop_here, self._stop_there = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._stop_here.close()
        self._thread.join()
        self._stop_there.close()
        self._listener.close()

    def _run(self) -> None:
        for sock in self._clients():
            try:
                sock.settimeout(CLIENT_SECONDS)
                sock.sendall(self._answer())
            except OSError as error:
                logger.debug("a client of the control socket left: %s", error)
            except Exception:
                logger.exception("a client of the control socket gets no answer")
            finally:
                sock.close()

    def _clients(self) -> Iterator[socket.socket]:
        """Accept until told to stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop_there, selectors.EVENT_READ)
            while all(key.fileobj is self._listener for key, _ in selector.select()):
                try:
                    sock, _ = self._listener.accept()
                except OSError as error:  # gone again; or no descriptor is left, which the next pause may bring
                    logger.debug("the control socket could not accept: %s", error)
                else:
                    yield sock
                time.sleep(PAUSE_SECONDS)


def _check_private(directory: Path) -> None:
    """Make sure that a directory, and no link to one, belongs to this user and is closed to all others."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{directory} must be a directory of this user with mode 0700; remove it, or correct its mode"
        )


def _listen(path: Path) -> socket.socket:
    """Listen at a path, under another name first: so what has the name has somebody behind it, or is dead."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_taken(path):
            raise OSError(errno.EADDRINUSE, "another daemon, or a file, has that name")
        sock.setblocking(False)
        new.unlink(missing_ok=True)
        sock.bind(str(new))
        new.chmod(0o600)
        sock.listen(_BACKLOG)
        new.replace(path)
    except (OSError, ValueError) as error:
        sock.close()
        with contextlib.suppress(OSError, ValueError):
            new.unlink()
        raise ConfigError(
            f"there can be no control socket {str(path)!r}: {error}; give another --control, or --control off"
        ) from None
    return sock


def _is_taken(path: Path) -> bool:
    """Whether there is anything but the socket of a dead daemon."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return True
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(CLIENT_SECONDS)
        return sock.connect_ex(str(path)) != errno.ECONNREFUSED
