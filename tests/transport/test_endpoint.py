from pathlib import Path

import pytest

from dpserver.errors import ConfigError
from dpserver.transport import InetEndpoint, ShmEndpoint, UnixEndpoint, parse_endpoint
from dpserver.transport.endpoint import addresses_at_hand, inet_endpoint, shm_endpoint, unix_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint", "template"),
    [
        ("inet:localhost:31415", InetEndpoint("localhost", 31415), None),
        ("inet:node7:4000@w.xyz", InetEndpoint("node7", 4000), Path("w.xyz")),
        ("inet:[::1]:31415", InetEndpoint("::1", 31415), None),
        ("unix:water", UnixEndpoint("/tmp/ipi_water"), None),
        ("unix:/run/md.sock@/a/w.xyz", UnixEndpoint("/run/md.sock"), Path("/a/w.xyz")),
        ("unix:a:b", UnixEndpoint("/tmp/ipi_a:b"), None),
        ("shm:water@w.xyz", ShmEndpoint("/tmp/ipi_water"), Path("w.xyz")),
        ("shm:/run/md.sock", ShmEndpoint("/run/md.sock"), None),
    ],
)
def test_what_a_user_writes(text, endpoint, template):
    assert parse_endpoint(text) == (endpoint, template)
    assert parse_endpoint(str(endpoint)) == (endpoint, None)


def test_the_prefix_of_unix_names_can_be_set():
    assert parse_endpoint("unix:water", "/scratch/ipi_")[0] == UnixEndpoint("/scratch/ipi_water")
    assert parse_endpoint("unix:/abs", "/scratch/ipi_")[0] == UnixEndpoint("/abs")
    assert parse_endpoint("shm:water", "/scratch/ipi_")[0] == ShmEndpoint("/scratch/ipi_water")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("localhost:31415", "of no known kind; expected inet:HOST:PORT, unix:NAME"),
        ("", "of no known kind"),
        ("inet:localhost", "has no port"),
        ("inet:localhost:", "has no port"),
        ("inet:localhost:http", "has no port"),
        ("inet::31415", "needs a host"),
        ("inet:localhost:0", "port 0 is out of range"),
        ("inet:localhost:65536", "port 65536 is out of range"),
        ("unix:", "needs a name"),
        ("unix:" + 120 * "x", "at most 107 bytes"),
        ("unix:water@", "ends in @"),
        ("shm:", "a shm endpoint needs a name"),
        ("shm:" + 120 * "x", "at most 107 bytes"),
    ],
)
def test_what_cannot_be_used_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_endpoint(text)


def test_a_host_without_address_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"host 'no\.such\.host\.invalid' of inet:no"):
        inet_endpoint("no.such.host.invalid", 31415).resolve()


def test_addresses():
    assert unix_endpoint("water").resolve()[0].target == "/tmp/ipi_water"
    assert shm_endpoint("water").resolve() == unix_endpoint("water").resolve()
    assert ("127.0.0.1", 31415) in [a.target for a in inet_endpoint("localhost", 31415).resolve()]


def test_addresses_at_hand_are_those_that_no_other_machine_is_asked_for():
    for text in ("inet:localhost:31415", "inet:127.0.0.1:31415", "inet:[::1]:31415", "unix:/tmp/ipi_water"):
        endpoint, _ = parse_endpoint(text)
        assert addresses_at_hand(str(endpoint)) == frozenset(endpoint.resolve())
    for text in ("inet:node7:31415", "inet:node7", "unix:/tmp/ipi_water@b", "nothing"):
        assert addresses_at_hand(text) == frozenset()
