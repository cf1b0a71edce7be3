"""A hundred thousand sessions of each kind; DPSERVER_CHAOS_SESSIONS is another number."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.ipi.bouts import LIMITS, play, play_mutated, recordings
from tests.ipi.oracle import Manner, Rest
from tests.ipi.scripts import Script, scripts

pytestmark = pytest.mark.chaos

N_SESSIONS = int(os.environ.get("DPSERVER_CHAOS_SESSIONS", "100000"))
ROUND = 2_000
"""Sessions for which hypothesis remembers what it has tried."""


def told(ends: Counter[Rest]) -> str:
    counts = ", ".join(f"{ends[rest]} {rest.name}" for rest in Rest)
    return f"{ends.total()} sessions: {counts}"


def test_grammar(chaos_seed: int, report: Callable[[str], None]) -> None:
    ends: Counter[Rest] = Counter()

    for number in range(0, N_SESSIONS, ROUND):

        @seed(chaos_seed + number)
        @settings(
            max_examples=min(ROUND, N_SESSIONS - number),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(scripts())
        def play_one(script: Script) -> None:
            bout = play(script.stream, script.cuts, script.delays, script.manner, is_closed=script.is_closed)
            ends[bout.expected.rest] += 1

        play_one()
    report(told(ends))


def test_mutations(chaos_seed: int, report: Callable[[str], None]) -> None:
    recorded = recordings()
    report(told(Counter(play_mutated(chaos_seed, k, recorded).expected.rest for k in range(N_SESSIONS))))


def test_peers_still_speak_as_they_were_recorded(tmp_path: Path, report: Callable[[str], None]) -> None:
    """The recorder works, and what it writes today is answered to its end."""
    pytest.importorskip("ipi")
    from tests.ipi.record import write

    write(tmp_path)
    for path in sorted(tmp_path.glob("*.bin")):
        stream = path.read_bytes()
        bout = play(stream, [], [], Manner(LIMITS, is_shared="shm" in path.name))
        assert bout.expected.rest in {Rest.EXIT, Rest.READY}
        assert bout.expected.n_read == len(stream)
        report(f"{path.name}: {len(bout.answers)} answers")
