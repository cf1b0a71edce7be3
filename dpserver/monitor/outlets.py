"""Where a daemon can be watched from outside: its control socket and its pages for Prometheus."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dpserver.errors import ConfigError
from dpserver.monitor.meter import Meter
from dpserver.monitor.pages import make_pages
from dpserver.transport.control import ControlServer, default_path
from dpserver.transport.web import WebServer, parse_address

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"


@contextmanager
def open_outlets(meter: Meter, control: str = AUTO, metrics: str | None = None) -> Iterator[None]:
    """Let a meter be read from other processes while the context lasts.

    Args:
        meter: to be read.
        control: path of the control socket, `auto` for the usual place, where it is no harm if there can be none, or
            `off`.
        metrics: HOST:PORT for Prometheus, or None.

    Raises:
        ConfigError: the socket or the port asked for cannot be had, or prometheus-client is missing.
    """
    with ExitStack() as stack:
        if metrics is not None:
            address, pages = parse_address(metrics), make_pages(meter)
            server = stack.enter_context(WebServer(address, pages))
            logger.info("metrics on port %d of %s", server.port, address.target[0])
        if control != OFF:
            try:
                path = default_path() if control == AUTO else Path(control)
                stack.enter_context(ControlServer(path, lambda: json.dumps(meter.snapshot()).encode()))
            except ConfigError as error:
                if control != AUTO:
                    raise
                logger.warning("dpserver status will not see this daemon: %s", error)
        yield
