from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from dpserver.errors import ConfigError
from dpserver.transport import web
from dpserver.transport.web import Page, WebServer, parse_address
from tests.patience import PATIENCE


def fail() -> Page:
    raise ZeroDivisionError("odd")


PAGES = {
    "/a": lambda: Page(200, "µ".encode()),
    "/down": lambda: Page(503, b"down\n", "text/html"),
    "/bug": fail,
}


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(parse_address("127.0.0.1:0"), PAGES) as server:
        yield server


def get(server: WebServer, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(host, server.port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_pages(server):
    assert get(server, "/a") == (200, "text/plain; charset=utf-8", "µ".encode())
    assert get(server, "/a?x=1") == (200, "text/plain; charset=utf-8", "µ".encode())
    assert get(server, "/a", "HEAD") == (200, "text/plain; charset=utf-8", b"")
    assert get(server, "/down") == (503, "text/html", b"down\n")


def test_what_is_not_there(server):
    status, _, body = get(server, "/")
    assert status == 404
    assert body == b"there are /a, /down, /bug\n"
    assert get(server, "/a", "POST")[0] == 501


def test_a_bug_is_in_the_log_and_the_server_lives(server, caplog):
    assert get(server, "/bug")[0] == 500
    assert "the page /bug could not be made" in caplog.text
    assert get(server, "/a")[0] == 200


def test_clients_that_say_nothing_or_nonsense(server, caplog):
    quiet = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as odd:
        odd.sendall(b"STATUS      \0\0\0\0\r\n\r\n")
        odd.recv(1 << 16)
    assert get(server, "/a")[0] == 200
    for sock in quiet:
        sock.close()
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_no_more_clients_than_places(server, monkeypatch):
    quiet = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(web.MAX_CLIENTS)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as late:
        assert late.recv(1) == b""
    quiet.pop().close()
    for sock in quiet:
        sock.close()


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        server = WebServer(parse_address("[::1]:0"), PAGES)
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server:
        assert get(server, "/a", host="::1")[0] == 200


def test_every_address_of_the_machine():
    with WebServer(parse_address(":0"), PAGES) as server:
        assert get(server, "/a")[0] == 200


def test_a_busy_port_is_refused(server):
    with pytest.raises(ConfigError, match=rf"--metrics cannot listen on port {server.port} of 127.0.0.1: .*"):
        WebServer(parse_address(f"127.0.0.1:{server.port}"), PAGES)


@pytest.mark.parametrize(
    ("text", "family", "target"),
    [
        ("127.0.0.1:9100", socket.AF_INET, ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", socket.AF_INET, ("0.0.0.0", 9100)),
        ("[::1]:9100", socket.AF_INET6, ("::1", 9100)),
    ],
)
def test_addresses(text, family, target):
    address = parse_address(text)
    assert address.family == family
    assert address.target[:2] == target


@pytest.mark.parametrize("text", ["", "9100", "localhost", "localhost:", "localhost:http", "::1:9100", ":99999", ":-1"])
def test_addresses_that_are_none(text):
    with pytest.raises(ConfigError, match=r"is no address; expected HOST:PORT, \[IPv6\]:PORT or :PORT, as :9100"):
        parse_address(text)


def test_a_host_without_an_address():
    with pytest.raises(ConfigError, match=r"host 'no\.such\.host\.invalid' of --metrics .* has no address"):
        parse_address("no.such.host.invalid:9100")
