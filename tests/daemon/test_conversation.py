"""Shared memory through the daemon, with a peer that a test tells what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from dpserver.transport.shm import SEGMENTS
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import Faulty, PairModel
from tests.peer import EXIT, GETFORCE, HAVEDATA, READY, Peer
from tests.segments import Segments, segments, take_reply

pytestmark = pytest.mark.skipif(not SEGMENTS.is_dir(), reason="no /dev/shm")

FRAME = structures.cubic()
MOVES = np.random.default_rng(2).normal(scale=0.02, size=(3, FRAME.n_atoms, 3))
X = FRAME.positions + MOVES
CELLS = np.repeat(FRAME.cell, 3, axis=0)
EXPECTED = PairModel().evaluate(structures.copies(FRAME, MOVES))


def shm(peer: Peer) -> str:
    return peer.endpoint.replace("unix:", "shm:")


def count_open(made: Segments) -> int:
    """How often this process has the segments open, the test itself included."""
    paths = [SEGMENTS / name for name in made.names.values()]
    files = [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    return sum(os.path.samefile(fd, path) for fd in files for path in paths)


@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize("is_classic", [False, True])
def test_structures_and_forces_are_shared(n_frames, is_classic):
    with segments(n_frames, FRAME.n_atoms) as made, Peer() as peer, serving(PairModel(), target(shm(peer))):
        n_open = count_open(made)
        with peer.accept() as line:
            line.handshake(b" batch_size:%d" % n_frames)
            for turn in range(3):
                made.fill(X[:n_frames], CELLS[:n_frames])
                for kind in ("pot", "force", "vir"):
                    made.arrays[kind][:] = np.nan
                line.send(made.posdata(has_names=turn == 0))
                if is_classic:
                    assert line.status() == HAVEDATA
                line.send(GETFORCE)
                assert take_reply(line, n_frames) == [b" "] * n_frames
                energy, forces, virial = made.answer()
                np.testing.assert_allclose(energy, EXPECTED.energy[:n_frames], rtol=1e-12)
                np.testing.assert_allclose(forces.reshape(-1, 3), EXPECTED.forces[: forces.size // 3], atol=1e-12)
                np.testing.assert_allclose(virial, EXPECTED.virial[:n_frames], atol=1e-12)
                assert line.status() == READY
                assert count_open(made) == n_open + 5
            line.send(EXIT)
            assert line.is_closed()
        with peer.accept():  # the daemon has closed the old connection by then
            assert count_open(made) == n_open


def spoil(made: Segments, kind: str, what: str) -> None:
    path = SEGMENTS / made.names[kind]
    if what == "missing":
        made.names[kind] = "dpserver_test_nowhere"
    elif what == "outside":
        made.names[kind] = "../../etc/passwd"
    elif what == "short":
        os.truncate(path, path.stat().st_size // 2)
    elif what == "not finite":
        made.arrays[kind][0] = np.nan


@pytest.mark.parametrize(
    ("kind", "what", "complaint"),
    [
        ("pos", "missing", r"'dpserver_test_nowhere' \(pos\) cannot be opened"),
        ("force", "missing", r"\(force\) cannot be opened"),
        ("vir", "outside", r"the segment 'vir' has the name b'\.\./\.\./etc/passwd'"),
        ("h", "short", r"\(h\) has 36 bytes; expected 72"),
        ("force", "short", r"\(force\) has 288 bytes; expected 576"),
        ("pos", "not finite", "the position of atom 0 is not finite"),
    ],
)
def test_what_cannot_be_used_costs_its_peer_the_connection_and_nobody_else(kind, what, complaint, caplog):
    with (
        segments(1, FRAME.n_atoms) as good,
        segments(1, FRAME.n_atoms) as bad,
        Peer() as peer,
        Peer() as other,
        serving(PairModel(), target(shm(peer)), target(shm(other))),
        other.accept() as undisturbed,
    ):
        undisturbed.handshake()
        good.fill(X[:1], CELLS[:1])
        for turn in range(2):
            if turn:
                with peer.accept() as line:
                    line.handshake()
                    bad.fill(X[:1], CELLS[:1])
                    spoil(bad, kind, what)
                    line.send(bad.posdata(), GETFORCE)
                    assert line.is_closed()
                assert np.isnan(bad.arrays["vir"]).all()
            undisturbed.send(good.posdata(has_names=turn == 0), GETFORCE)
            take_reply(undisturbed)
            np.testing.assert_allclose(good.answer()[1][0], EXPECTED.forces[: FRAME.n_atoms], atol=1e-12)
    assert re.search(complaint, caplog.text)


def test_a_peer_that_cuts_its_segments_short_while_we_compute():
    """It gets no forces, and its memory grows by no byte."""
    with segments(1, FRAME.n_atoms) as made, Peer() as peer:
        path = SEGMENTS / made.names["force"]

        def cut(frames, result):
            os.truncate(path, 0)
            return result

        with serving(Faulty(cut), target(shm(peer))), peer.accept() as line:
            line.handshake()
            made.fill(X[:1], CELLS[:1])
            line.send(made.posdata(), GETFORCE)
            assert line.is_closed()
        assert path.stat().st_size == 0
        os.truncate(path, made.memory["force"].size)
