"""Real i-PI whose lines to the daemon are cut at random bytes, in each way in which it speaks."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.conftest import N_BEADS
from tests.integration.ipi_runs import finish, free_endpoint, ipi, place, write_input
from tests.proxy import Cut, Proxy

FRAME = structures.cubic()


@dataclass(frozen=True)
class Manner:
    """How i-PI speaks.

    Attributes:
        kind: of its socket.
        options: of its forcefield.
        n_bytes: what it says and hears in a few exchanges.
    """

    kind: str = "unix"
    options: str = ""
    n_bytes: int = 2500


BATCH = "<batch_size> 2 </batch_size>"
MANNERS = {
    "consolidated": Manner(),
    "classic": Manner(options="<consolidate_messages> False </consolidate_messages>"),
    "batch": Manner(options=BATCH),
    "shm": Manner("shm", BATCH, 300),
}


def cuts(rng: random.Random, manner: Manner, number: int) -> list[Cut]:
    """So many, of every sort."""
    sorts = [(side, how) for side in ("peer", "engine") for how in ("close", "reset")]
    return [Cut(rng.randrange(manner.n_bytes), *sorts[k % len(sorts)]) for k in range(number)]


def run(folder: Path, manner: Manner, wanted: Iterable[Cut], n_steps: int, limit: float) -> int:
    """Run i-PI through a proxy that cuts each new connection as it is told, and the others not; how often it did."""
    endpoint, waiting = free_endpoint(manner.kind), iter(wanted)
    write_input(folder, FRAME, endpoint, manner.options, N_BEADS, n_steps)
    with (
        Proxy(place(endpoint), "unix" if manner.kind == "shm" else 0, lambda: next(waiting, None)) as proxy,
        serving(PairModel(), target(proxy.endpoint.replace("unix:", f"{manner.kind}:"), connections=2)),
        ipi(folder) as process,
    ):
        finish(process, folder, limit)
    return sum(passed.is_cut for passed in proxy.passed)
