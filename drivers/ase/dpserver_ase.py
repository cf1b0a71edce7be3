"""ASE calculator that starts a dpserver daemon for itself, talks to it over a unix socket, and stops it.

    with DPServer("w.pt") as calc:
        atoms.calc = calc
        atoms.get_potential_energy()

One file that needs ASE and an installed dpserver: copy it beside your script, or put this folder on PYTHONPATH. For the
same numbers without a second process there is `dpserver.ase.DPCalculator`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.socketio import SocketIOCalculator

_GRACE = 15.0  # s that a daemon has for leaving on its own


class DPServer(SocketIOCalculator):  # type: ignore[misc]
    """Energies, forces and stresses of a daemon that lives as long as this calculator.

    The daemon starts with the first calculation and is told the species in the order of those atoms. Other positions,
    cells and boundary conditions go to the same daemon; other species, or a refused structure, to a new one.

    Args:
        model: a model file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one the model was trained in.
        command: what starts dpserver; by default the module of this interpreter.

    Raises:
        CalculationFailed: at a calculation; the daemon has not started, or has refused the structure. The message holds
            its own words.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        precision: str | None = None,
        command: Sequence[str] = (sys.executable, "-m", "dpserver"),
    ) -> None:
        super().__init__(unixsocket=f"dpserver_{os.getpid()}_{uuid.uuid4().hex[:8]}", launch_client=self._launch)
        self.log = None  # ASE's own is closed with the first daemon
        self._command = [
            *command,
            *("serve", "--once"),
            *("--model", str(Path(model).resolve())),
            *("--device", device),
            *(() if precision is None else ("--precision", precision)),
            *("--unix", self._unixsocket),
            *("--timeout", "60", "--log-level", "warning"),
        ]
        self._symbols: tuple[str, ...] = ()
        self._daemon: _Daemon | None = None

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Send positions and lattice vectors, and take what comes back.

        Raises:
            CalculationFailed: the daemon has no answer.
        """
        atoms = self.atoms if atoms is None else atoms
        if self._symbols != tuple(atoms.symbols):
            self.close()
            self._symbols = tuple(atoms.symbols)
        # What is not periodic has no lattice vector on the wire, which knows no boundary conditions.
        sent = atoms.copy()
        sent.cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
        self.results = {}
        try:
            super().calculate(sent, list(properties), ["positions", "cell"])
        except (OSError, AssertionError) as error:
            words = self._daemon.last_words() if self._daemon is not None else str(error)
            self.close()
            raise CalculationFailed(words) from error
        self.results.pop("morebytes")
        self.atoms = atoms.copy()

    def close(self) -> None:
        """Let the daemon go, and wait until it is gone; a later calculation starts another."""
        server, is_told = self.server, False
        if server is not None:
            server.proc = None  # ours to wait for
            if server.protocol is not None:
                with contextlib.suppress(OSError):
                    server.protocol.end()
                    is_told = True
        super().close()
        if self._daemon is not None:
            self._daemon.stop(_GRACE if is_told else 0.0)
            self._daemon = None

    def _launch(self, atoms: ase.Atoms, properties: Any, port: int | None, unixsocket: str) -> subprocess.Popen[bytes]:
        """Called by ASE once its socket listens."""
        self._daemon = _Daemon(self._command, atoms)
        return self._daemon.process


class _Daemon:
    """A daemon's process; ended with the last reference to it or with Python, whichever is first.

    Args:
        command: what starts it, less the template.
        atoms: whose order of species it is told.
    """

    def __init__(self, command: Sequence[str], atoms: ase.Atoms) -> None:
        with contextlib.ExitStack() as files:
            self._log = files.enter_context(tempfile.TemporaryFile())
            template = files.enter_context(tempfile.NamedTemporaryFile("w", prefix="dpserver_", suffix=".xyz"))
            atoms.write(template, format="xyz")
            template.flush()
            self.process = subprocess.Popen(
                [*command, "--template", template.name],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is for the script, which then lets the daemon go
            )
            self._end = weakref.finalize(self, _end, self.process, files.pop_all())

    def last_words(self) -> str:
        """Why it leaves; waits until it has left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        self._log.seek(0)
        words = " | ".join(self._log.read().decode(errors="replace").splitlines()[-3:])
        return words or f"dpserver left with status {self.process.returncode} and no word"

    def stop(self, patience: float) -> None:
        """Wait for so many seconds that it leaves by itself, then ask it to, and wait."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self._end()


def _end(process: subprocess.Popen[bytes], files: contextlib.ExitStack) -> None:
    with files:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
