import struct

import numpy as np
import pytest

from dpserver.errors import RemoteProtocolError
from dpserver.ipi import codec
from dpserver.ipi.codec import EngineMessage, Forces, Limits, PeerMessage
from dpserver.units import BOHR
from tests import peer

LIMITS = Limits(atoms=100, batch=8, init_bytes=64)
CELL = np.array([[10.0, 0.0, 0.0], [1.0, 11.0, 0.0], [2.0, 3.0, 12.0]])
RNG = np.random.default_rng(0)


def messages() -> list[tuple[PeerMessage, bytes, int]]:
    """Every message whole, with the batch size it is read at."""
    return [
        (PeerMessage.STATUS, peer.STATUS, 1),
        (PeerMessage.GETFORCE, peer.GETFORCE, 1),
        (PeerMessage.EXIT, peer.EXIT, 1),
        (PeerMessage.INIT, peer.init(b" template : w.xyz , "), 1),
        (PeerMessage.INIT, peer.init(b""), 1),
        (PeerMessage.POSDATA, peer.posdata(RNG.normal(size=(5, 3)), CELL), 1),
        (PeerMessage.POSDATA, peer.batched_posdata(RNG.normal(size=(3, 4, 3)), [CELL] * 3), 3),
    ]


@pytest.mark.parametrize("message", PeerMessage)
def test_headers_come_back(message):
    raw = codec.encode_header(message)
    assert len(raw) == 12
    assert codec.decode_header(raw + b"more") is message


@pytest.mark.parametrize("message", EngineMessage)
def test_our_headers_are_padded_with_spaces(message):
    assert codec.encode_header(message) == message.value.encode() + b" " * (12 - len(message.value))


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1",
        b"status      ",
        b"READY       ",
        b"STATUS\0\0\0\0\0\0",
        b"\xff" * 12,
        b" " * 12,
        b" STATUS     ",
    ],
)
def test_what_is_no_header_is_refused_with_what_came(raw):
    with pytest.raises(
        RemoteProtocolError, match="expected the header STATUS, INIT, POSDATA, GETFORCE, EXIT"
    ) as caught:
        codec.decode_header(raw)
    assert repr(raw) in str(caught.value)


@pytest.mark.parametrize(("message", "raw", "batch_size"), messages())
def test_the_size_is_never_underestimated_byte_by_byte_nor_disturbed_by_trailing_data(message, raw, batch_size):
    sizes = [codec.message_size(message, raw[:k], batch_size, LIMITS) for k in range(12, len(raw) + 1)]
    assert sizes == sorted(sizes)
    assert all(size > k for k, size in zip(range(12, len(raw)), sizes, strict=False))
    assert sizes[-1] == len(raw)
    assert codec.message_size(message, raw + b"STATUS      more", batch_size, LIMITS) == len(raw)


@pytest.mark.parametrize("tail", [b"", b"GETFORCE    "])
def test_posdata_transposes_the_cell_and_ignores_its_inverse(tail):
    x = RNG.normal(size=(5, 3))
    structures = codec.decode_posdata(bytearray(peer.posdata(x, CELL) + tail), 1)
    assert (structures.n_frames, structures.n_atoms) == (1, 5)
    np.testing.assert_allclose(structures.positions[0], x, rtol=1e-15)
    np.testing.assert_allclose(structures.cell[0], CELL, rtol=1e-15)


def test_posdata_is_converted_by_exactly_one_product():
    raw = peer.posdata([[1.0, 2.0, 3.0]], CELL)
    wire = np.frombuffer(raw, float, 3, len(raw) - 24)
    assert (codec.decode_posdata(raw, 1).positions[0, 0] == wire * BOHR).all()


def test_what_is_decoded_does_not_hold_the_buffer():
    buffer = bytearray(peer.posdata([[1.0, 2.0, 3.0]], CELL))
    structures = codec.decode_posdata(buffer, 1)
    del buffer[:]
    structures.positions[0, 0, 0] = 7.0
    assert structures.positions.flags["C_CONTIGUOUS"]
    assert structures.cell.flags["C_CONTIGUOUS"]


def test_a_batch_keeps_the_order_of_its_structures():
    x = RNG.normal(size=(3, 4, 3))
    cells = CELL * np.array([1.0, 2.0, 3.0])[:, None, None]
    structures = codec.decode_posdata(peer.batched_posdata(x, cells) + b"GETFORCE    ", 3)
    np.testing.assert_allclose(structures.positions, x, rtol=1e-15)
    np.testing.assert_allclose(structures.cell, cells, rtol=1e-15)


@pytest.mark.parametrize("n_atoms", [-1, 0, 101, 2**31 - 1])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_absurd_atom_count_is_refused_before_any_position_came(n_atoms, batch_size):
    before_count = 144 if batch_size == 1 else 0
    raw = b"POSDATA     " + bytes(before_count) + struct.pack("=i", n_atoms)
    with pytest.raises(RemoteProtocolError, match=rf"announces {n_atoms} atoms .* expected 1 to {100 // batch_size}"):
        codec.message_size(PeerMessage.POSDATA, raw, batch_size, LIMITS)


@pytest.mark.parametrize("length", [-1, 65, 2**31 - 1])
def test_an_absurd_init_length_is_refused(length):
    raw = b"INIT        " + struct.pack("=ii", 3, length)
    with pytest.raises(RemoteProtocolError, match=f"a string of {length} bytes; expected 0 to 64"):
        codec.message_size(PeerMessage.INIT, raw, 1, LIMITS)


@pytest.mark.parametrize("text", [b"", b"\0", b" template : w.xyz , "])
def test_init_gives_bead_and_string(text):
    assert codec.decode_init(peer.init(text, bead=7) + b"STATUS      ") == (7, text)


@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize("extra", [None, b'{"a": 1}'])
def test_a_reply_reads_back(n_frames, extra):
    answer = Forces(
        RNG.normal(size=n_frames),
        RNG.normal(size=(n_frames, 4, 3)),
        RNG.normal(size=(n_frames, 3, 3)),
        [] if extra is None else [extra] * n_frames,
    )
    raw = b"".join(bytes(b) for b in codec.encode_forces(answer))
    reply = peer.read_reply(raw, n_frames)
    assert reply.size == len(raw)
    np.testing.assert_allclose(reply.energy, answer.energy, rtol=1e-15)
    np.testing.assert_allclose(reply.forces, answer.forces, rtol=1e-15)
    np.testing.assert_allclose(reply.virial, (answer.virial + answer.virial.transpose(0, 2, 1)) / 2, atol=1e-15)
    assert (reply.virial == reply.virial.transpose(0, 2, 1)).all()
    assert reply.extras == [extra or b" "] * n_frames


def test_extras_are_never_empty():
    answer = Forces(np.zeros(2), np.zeros((2, 1, 3)), np.zeros((2, 3, 3)), [b"", b"x"])
    raw = b"".join(bytes(b) for b in codec.encode_forces(answer))
    assert peer.read_reply(raw, 2).extras == [b" ", b"x"]


def test_forces_that_are_not_contiguous_go_out_in_order():
    forces = np.asfortranarray(RNG.normal(size=(1, 5, 3)))
    raw = b"".join(bytes(b) for b in codec.encode_forces(Forces(np.zeros(1), forces, np.zeros((1, 3, 3)))))
    np.testing.assert_allclose(peer.read_reply(raw).forces, forces, rtol=1e-15)
