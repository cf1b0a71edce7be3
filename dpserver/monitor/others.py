"""Other daemons of this user, as far as they concern this one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping

from dpserver.transport.control import ask, find_sockets
from dpserver.transport.endpoint import Address, addresses_at_hand

logger = logging.getLogger(__name__)


def warn_of_others(endpoints: Mapping[str, Collection[Address]]) -> None:
    """Say which daemons of this user on this machine dial an endpoint that is about to be dialled.

    Nobody is refused by that: an MD code listens, and engines dial it. Those that take one engine keep all others
    waiting in their backlog, and i-PI gives each some of its beads, whatever models they have.

    Args:
        endpoints: addresses to be dialled, by the names of their endpoints.
    """
    if not endpoints:
        return
    for pid, model, theirs in _others():
        at_hand = addresses_at_hand(theirs)
        for endpoint in (name for name, ours in endpoints.items() if name == theirs or not at_hand.isdisjoint(ours)):
            logger.warning(
                "%s: dpserver %d, with the model %s, dials it too (dpserver status); i-PI deals its beads out among "
                "all that do, and a code that takes one engine keeps the others waiting: stop one of them, or give it "
                "an endpoint of its own",
                endpoint,
                pid,
                model,
            )


def _others() -> Iterator[tuple[int, str, str]]:
    """Process number, model and endpoint of each other daemon that answers."""
    for path in find_sockets():
        if path.name == str(os.getpid()) or not (answer := ask(path)):
            continue
        try:
            told = json.loads(answer)
            found = [(int(told["pid"]), str(told["model"]), str(one["endpoint"])) for one in told["endpoints"]]
        except (ValueError, KeyError, TypeError) as error:  # of another version
            logger.debug("the daemon at %s does not say what it serves: %s", path, error)
            continue
        yield from found
