"""A few pages over HTTP, for programs that watch: read only, no keep-alive, no more clients than it can bear."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from dpserver.errors import ConfigError
from dpserver.transport.endpoint import Address

logger = logging.getLogger(__name__)

CLIENT_SECONDS = 5.0
"""How long a client may take to ask, and to read."""

MAX_CLIENTS = 16
"""At once; more are hung up on."""


@dataclass(frozen=True)
class Page:
    """What is answered.

    Attributes:
        status: of HTTP.
        body: text.
        content_type: of it.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


def parse_address(text: str) -> Address:
    """Read where to listen.

    Args:
        text: `HOST:PORT`, `[IPv6]:PORT`, or `:PORT` for every address of this machine.

    Raises:
        ConfigError: the text has another form, or the host no address.
    """
    host, colon, port = text.rpartition(":")
    is_bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not colon or is_bare_ipv6 or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"--metrics {text!r} is no address; expected HOST:PORT, [IPv6]:PORT or :PORT, as :9100")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        is_dual = socket.has_dualstack_ipv6()
        return Address(socket.AF_INET6, ("::", int(port))) if is_dual else Address(socket.AF_INET, ("", int(port)))
    try:
        family, _, _, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r} of --metrics {text} has no address ({error}); check its name") from None
    return Address(family, target)


class WebServer:
    """Answers GET and HEAD with pages made on the spot, each client in a thread of its own.

    Args:
        address: where to listen.
        pages: by path; called from the clients' threads.

    Attributes:
        port: that it listens on, where 0 was asked for.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, address: Address, pages: Pages) -> None:
        try:
            self._server = _Server(address, pages)
        except OSError as error:
            where = f"port {address.target[1]} of {address.target[0] or 'any address'}"
            raise ConfigError(f"--metrics cannot listen on {where}: {error}; choose another port") from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="web", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: Address, pages: Pages) -> None:
        self.address_family = address.family
        self.pages = pages
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address.target, _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind; an IPv6 address for all is one for IPv4 too. The name of this host is nobody's business."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client if there is a place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system gives no thread
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Have a bug of ours in the log; clients that leave early are none."""
        logger.debug("a client of the metrics left early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer with a page."""
        page = self._page()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET

    def _page(self) -> Page:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            return Page(404, f"there are {', '.join(self.server.pages)}\n".encode())
        try:
            return make()
        except Exception:
            logger.exception("the page %s could not be made", self.path)
            return Page(500, b"internal error, see the log\n")

    def version_string(self) -> str:
        """Name the server in its answers."""
        return "dpserver"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the log for what matters; its name and form are the base class's."""
        logger.debug("metrics: " + format, *args)
