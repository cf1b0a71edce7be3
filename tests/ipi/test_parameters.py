import pytest

from dpserver.errors import RemoteProtocolError
from dpserver.ipi.codec import Limits
from dpserver.ipi.parameters import is_from_ipi, parse_parameters, read_batch_size


@pytest.mark.parametrize(
    ("raw", "parameters"),
    [
        (b"\0", {}),
        (b"", {}),
        (b" template : w.xyz , ", {"template": "w.xyz"}),
        (b" template : w.xyz , , batch_size:32", {"template": "w.xyz", "batch_size": "32"}),
        (b" batch_size:8", {"batch_size": "8"}),
        (b"{species: O H H}", {"species": "O H H"}),
        (b" species : O H H , verbosity : 1 , ", {"species": "O H H", "verbosity": "1"}),
        (b"template:/a:b/w.xyz", {"template": "/a:b/w.xyz"}),
        (b"template: a.xyz, template: b.xyz", {"template": "b.xyz"}),
        (b"just words, and more", {}),
        (b": nameless", {}),
        ("template: wässer.xyz".encode(), {"template": "wässer.xyz"}),
    ],
)
def test_what_peers_write_is_read(raw, parameters):
    assert parse_parameters(raw) == parameters


def test_what_is_no_text_is_refused():
    with pytest.raises(RemoteProtocolError, match="not UTF-8"):
        parse_parameters(b"\xff\xfe")


@pytest.mark.parametrize(("parameters", "size"), [({}, 1), ({"batch_size": "1"}, 1), ({"batch_size": "64"}, 64)])
def test_batch_size(parameters, size):
    assert read_batch_size(parameters, Limits(batch=64)) == size


@pytest.mark.parametrize("text", ["0", "-1", "65", "1.5", "many", "", "²", "9" * 30])
def test_a_batch_size_out_of_bounds_is_refused(text):
    with pytest.raises(RemoteProtocolError, match="expected 1 to 64"):
        read_batch_size({"batch_size": text}, Limits(batch=64))


@pytest.mark.parametrize(
    ("raw", "is_ipi"),
    [
        (b" ", True),
        (b" template : w.xyz , ", True),
        (b"  batch_size:8", True),
        (b" a : b , , batch_size:8", True),
        (b"\0", False),  # ASE
        (b"Initializing", False),  # CP2K
        (b"", False),
        (b"template: w.xyz", False),
        (b" words", False),
    ],
)
def test_the_string_of_ipi_is_known_from_those_of_others(raw, is_ipi):
    assert is_from_ipi(raw) is is_ipi
