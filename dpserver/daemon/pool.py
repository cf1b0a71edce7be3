"""All connections to one target: how many there are, and when more are dialled.

A pool without a number starts with one connection, and as soon as the peer has greeted it with one to spare. It
doubles when none is spare and the peer keeps them busy, that is, has asked most of them for forces before it went on
with any. The spares of the last doubling stay unused, and nothing more happens while that peer lives.

It also doubles when none is spare and the peer, after having used each, falls silent. i-PI with `matching lock` gives
each connection to one bead for good, and waits for ever for as many as it has beads.

Spares are kept open. i-PI speaks to a client only to give it work, so that one which it does not use costs it nothing.
One that is closed it finds dead on the day it turns to it, and with `exit_on_disconnect` it then ends the run. A peer
that accepts a single connection, such as ASE, never knows of the spare in its backlog, which goes when the peer stops
listening; one that accepts the next connection when the first has left finds it alive.

i-PI looks for clients once in ten polls, greets one after the other, and after each waits half a second for the next.
So the first spare is dialled at once, within that time, and those of a doubling together, while the forces that
brought it about are computed; but never more at a time than i-PI lets wait.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from dpserver.daemon.conversation import End
from dpserver.daemon.link import Link, Phase, Services, Target

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
"""To one target."""

MAX_PENDING = 4
"""Connections that wait to be greeted at any one time: the default of i-PI's `slots`."""

BUSY_SHARE = 0.75
"""Share of the connections that have to be busy at once. i-PI before 3.2 hands its beads to threads, and the first may
have its forces before the last has asked; and it then uses up to two connections for each bead, in turns."""

GREETING_SECONDS = 0.5
"""After this the next of a fixed number of connections is dialled though the others wait to be greeted: the peer may
want to see all of them first."""

QUIET_SECONDS = 0.3
"""How long a peer is silent that waits for more connections."""


class Pool:
    """The links to one target.

    The first link dials again whenever it has ended. The others are added once it is connected, if a number was asked
    for, or once it is greeted, and are dropped when the peer has gone.

    Args:
        target: whom to serve.
        services: of the daemon.

    Attributes:
        links: at present; the first is always among them.
    """

    def __init__(self, target: Target, services: Services) -> None:
        self._target = target
        self._services = services
        self._is_automatic = target.connections is None
        self._n_wanted = target.connections or 1
        self._is_full = False  # the peer turned one away
        self._is_over = False  # nobody is dialled any more
        self._has_changed = False
        self._has_been_refused = False  # on a link that has been dropped
        self._added_at = 0.0
        self._most_busy = 0  # links at once, since the last doubling
        self._quiet_since: float | None = None  # none of the links is spare, none is busy
        self.links = [self._make_link(1)]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return all(link.phase is Phase.DONE for link in self.links)

    @property
    def was_refused(self) -> bool:
        """Whether a connection ended because we refused what the peer sent."""
        return self._has_been_refused or any(link.last_end is End.REFUSED for link in self.links)

    @property
    def deadline(self) -> float | None:
        """When `tend` has something to do although no link has changed; None for never."""
        if self._is_automatic:
            return None if self._quiet_since is None else self._quiet_since + QUIET_SECONDS
        return self._added_at + GREETING_SECONDS if self._may_add else None

    def tend(self) -> None:
        """Drop the links that are done, add those that are wanted; to be called whenever a link may have changed."""
        if not self._has_changed and (self.deadline is None or self._services.clock() < self.deadline):
            return
        self._has_changed = False
        quiet_since, self._quiet_since = self._quiet_since, None
        self._drop_done()
        if self._is_over:
            self._abandon(lambda link: link.is_pending and (link.phase is not Phase.SERVING or link.is_extra))
        elif not any(link.phase is Phase.SERVING for link in self.links):
            self._begin_anew()
        elif self._is_automatic:
            self._grow(quiet_since)
        self._add()

    def stop(self) -> None:
        """Leave as soon as nothing is owed to the peer."""
        self._is_over = True
        for link in self.links:
            link.stop()

    def abandon(self) -> None:
        """Leave now."""
        self._is_over = True
        self._abandon(lambda link: True)

    def _make_link(self, number: int) -> Link:
        return Link(self._target, number, self._services, self._note_change)

    def _note_change(self) -> None:
        self._has_changed = True

    def _abandon(self, is_meant: Callable[[Link], bool]) -> None:
        for link in self.links:
            if is_meant(link):
                link.abandon()
        self._drop_done()

    def _drop_done(self) -> None:
        """Forget the links that are done, all but the first."""
        done = [link for link in self.links if link.phase is Phase.DONE]
        self._is_over |= self._services.is_once and any(link.last_end is not None for link in done)
        gone = [link for link in done if link.number > 1]
        if not gone:
            return
        self.links = [link for link in self.links if link not in gone]
        self._has_been_refused |= any(link.last_end is End.REFUSED for link in gone)
        if self._is_automatic:
            self._n_wanted = len(self.links)
            self._is_full |= not all(link.was_asked for link in gone)

    def _begin_anew(self) -> None:
        """The peer has gone: the first link alone looks for the next one."""
        self._abandon(lambda link: link.number > 1 and link.is_pending)
        self._is_full = False
        if self._is_automatic:
            self._n_wanted, self._most_busy = 1, 0

    def _grow(self, quiet_since: float | None) -> None:
        """Double, if no connection is spare and the peer needs more."""
        n_links = len(self.links)
        if self._is_full or not self._n_wanted == n_links < MAX_CONNECTIONS:
            return
        if n_links == 1:
            self._n_wanted = 2 if self.links[0].is_greeted else 1
        elif all(link.is_used for link in reversed(self.links)) and self._needs_more(quiet_since):
            logger.info("%s: all %d connections are in use, offering more", self._target.endpoint, n_links)
            self._n_wanted = min(2 * n_links, MAX_CONNECTIONS)
            self._most_busy, self._quiet_since = 0, None

    def _needs_more(self, quiet_since: float | None) -> bool:
        """Whether the peer, which has used every link, has kept most of them busy at once, or is silent for long."""
        now = self._services.clock()
        n_busy = sum(link.is_busy for link in self.links)
        self._most_busy = max(self._most_busy, n_busy)
        if not n_busy:
            self._quiet_since = now if quiet_since is None else quiet_since
        is_quiet = self._quiet_since is not None and now >= self._quiet_since + QUIET_SECONDS
        return is_quiet or self._most_busy >= BUSY_SHARE * len(self.links)

    @property
    def _may_add(self) -> bool:
        """Whether more are wanted, by a peer that is there to take them."""
        if self._is_over or len(self.links) >= self._n_wanted:
            return False
        return any(link.is_greeted if self._is_automatic else link.phase is Phase.SERVING for link in self.links)

    def _add(self) -> None:
        """Add what is wanted, a few at a time."""
        while self._may_add:
            now = self._services.clock()
            is_crowded = sum(link.is_pending for link in self.links) >= MAX_PENDING
            if is_crowded and (self._is_automatic or now < self._added_at + GREETING_SECONDS):
                return
            self._added_at = now
            taken = {link.number for link in self.links}
            self.links.append(self._make_link(next(k for k in itertools.count(1) if k not in taken)))
