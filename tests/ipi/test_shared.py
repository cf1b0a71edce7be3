from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.errors import RemoteProtocolError
from dpserver.ipi import Forces, Limits, PeerLeft, Segment, Session, SharedForcesWanted, State, shared
from tests import peer
from tests.segments import KINDS, posdata

NAMES = [b"ipi_shm_4711_8_" + kind.encode() for kind in KINDS]
LIMITS = Limits(atoms=100, batch=8, init_bytes=64)


def forces(n_frames: int, n_atoms: int) -> Forces:
    return Forces(np.ones(n_frames), np.ones((n_frames, n_atoms, 3)), np.ones((n_frames, 3, 3)))


def started(n_frames: int = 1) -> Session:
    session = Session(LIMITS, is_shared=True)
    session.receive_data(peer.init(b" batch_size:%d" % n_frames))
    session.next_event()
    return session


def sent(session: Session) -> bytes:
    return b"".join(bytes(buffer) for buffer in session.data_to_send())


@pytest.mark.parametrize("has_names", [True, False])
def test_the_size_is_known_from_any_prefix(has_names):
    raw = posdata(5, NAMES if has_names else [])
    for end in range(12, len(raw) + 1):
        size = shared.posdata_size(raw[:end], 2, has_names, LIMITS)
        assert end < size <= len(raw) or end == size == len(raw)
    assert shared.posdata_size(raw + peer.GETFORCE, 2, has_names, LIMITS) == len(raw)


def test_the_names_come_in_the_order_of_the_segments():
    n_atoms, names = shared.decode_posdata(posdata(5, NAMES), True)
    assert n_atoms == 5
    assert list(names) == list(Segment)
    assert [name.encode() for name in names.values()] == NAMES
    assert [segment.value for segment in Segment] == list(KINDS)


@pytest.mark.parametrize(
    "name",
    [b"../x", b"/x", b"a/b", b"..", b".", b".x", b"a b", b"a\0b", b"\xff", b"a\n", b"%s", "é".encode()],
)
def test_a_name_that_is_not_plain_is_refused(name):
    with pytest.raises(RemoteProtocolError, match="the segment 'ih' has the name"):
        shared.decode_posdata(posdata(5, [*NAMES[:2], name, *NAMES[3:]]), True)


def test_two_segments_cannot_be_one():
    with pytest.raises(RemoteProtocolError, match="two segments of shared memory have the same name"):
        shared.decode_posdata(posdata(5, [*NAMES[:5], NAMES[0]]), True)


@pytest.mark.parametrize("length", [0, -1, 256, 2**31 - 1])
def test_the_length_of_a_name_is_bounded(length):
    raw = peer.posdata(np.zeros((1, 3)), np.eye(3))[:12] + struct.pack("=ii", 5, length)
    with pytest.raises(RemoteProtocolError, match=r"mode='shm'\? Else dial it as unix:NAME"):
        shared.posdata_size(raw, 1, True, LIMITS)


@pytest.mark.parametrize("n_atoms", [0, -1, 51])
def test_the_number_of_atoms_is_bounded(n_atoms):
    with pytest.raises(RemoteProtocolError, match="atoms in each of 2 structures; expected 1 to 50"):
        shared.posdata_size(posdata(n_atoms, NAMES), 2, True, LIMITS)


def test_an_exchange():
    session = started(3)
    for has_names in (True, False, False):
        session.receive_data(posdata(4, NAMES if has_names else []) + peer.GETFORCE)
        event = session.next_event()
        assert isinstance(event, SharedForcesWanted)
        assert (event.shared.n_frames, event.shared.n_atoms) == (3, 4)
        assert [event.shared.names[Segment(kind)].encode() for kind in KINDS] == NAMES
        assert session.next_event() is None
        session.send(forces(3, 4))
        assert session.next_event() is None
        assert sent(session) == peer.FORCEREADY + 3 * (struct.pack("=i", 1) + b" ")


def test_shapes_of_the_segments():
    event = started(3)
    event.receive_data(posdata(4, NAMES))
    structures = event.next_event().shared
    expected = {"pos": (3, 4, 3), "h": (3, 3, 3), "ih": (3, 3, 3), "pot": (3,), "force": (3, 4, 3), "vir": (3, 3, 3)}
    assert {segment.value: structures.shape(segment) for segment in Segment} == expected


def test_the_atom_count_stays_that_of_the_segments():
    session = started()
    session.receive_data(posdata(4, NAMES) + peer.GETFORCE)
    session.next_event()
    session.send(forces(1, 4))
    session.receive_data(posdata(5, []))
    with pytest.raises(RemoteProtocolError, match="announces 5 atoms; expected 4, for which the peer made"):
        session.next_event()
    assert session.state is State.OVER


@pytest.mark.parametrize("batch", [b" ", b" batch_size:3"])
def test_shared_memory_behind_a_plain_endpoint_is_noticed(batch):
    """Else the session would wait for cells and positions that never come."""
    session = Session(LIMITS)
    session.receive_data(peer.init(batch) + posdata(4, NAMES) + peer.GETFORCE)
    session.next_event()
    with pytest.raises(RemoteProtocolError, match="has mode='shm'; dial it as shm:NAME"):
        session.next_event()


@settings(max_examples=300, deadline=None)
@given(
    scale=st.floats(1e-12, 1e6, allow_subnormal=False),
    n_atoms=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    has_lower_bits=st.booleans(),
    n_frames=st.integers(1, 3),
)
def test_no_cell_is_mistaken_for_names(scale, n_atoms, seed, has_lower_bits, n_frames):
    rng = np.random.default_rng(seed)
    cells = rng.normal(scale=scale, size=(n_frames, 3, 3))
    if not has_lower_bits:
        cells = np.round(cells, 2)
    x = rng.normal(size=(n_frames, n_atoms, 3))
    raw = peer.posdata(x[0], cells[0]) if n_frames == 1 else peer.batched_posdata(x, cells)
    assert not shared.names_segments(raw)


def test_a_plain_peer_behind_a_shared_endpoint_is_noticed():
    session = started()
    session.receive_data(peer.posdata(np.zeros((4, 3)), 12.3456 * np.eye(3)) + peer.GETFORCE)
    with pytest.raises(RemoteProtocolError):
        session.next_event()


def test_a_peer_that_leaves_among_the_names():
    session = started()
    session.receive_data(posdata(4, NAMES)[:50])
    assert session.next_event() is None
    session.receive_data(b"")
    assert session.next_event() == PeerLeft(
        False, "closed the connection in the middle of a POSDATA: 50 of 62 bytes came"
    )


@settings(max_examples=100, deadline=None)
@given(
    n_frames=st.integers(1, 3),
    orders=st.lists(st.sampled_from([peer.GETFORCE, peer.STATUS + peer.GETFORCE]), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_conversation_cut_anywhere_gets_the_same_answers(n_frames, orders, data):
    stream = peer.STATUS + peer.init(b" batch_size:%d" % n_frames)
    expected = [peer.NEEDINIT]
    for k, order in enumerate(orders):
        stream += posdata(4, [] if k else NAMES) + order
        expected += [peer.HAVEDATA] * (order != peer.GETFORCE)
        expected.append(peer.FORCEREADY + n_frames * (struct.pack("=i", 1) + b" "))
    stream += peer.EXIT
    session, said, n_asked = Session(LIMITS, is_shared=True), b"", 0
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    for start, stop in pairwise([0, *cuts, len(stream)]):
        if start < stop:
            session.receive_data(stream[start:stop])
        while (event := session.next_event()) is not None:
            if isinstance(event, SharedForcesWanted):
                n_asked += 1
                session.send(forces(n_frames, 4))
        said += sent(session)
    assert event is None
    assert session.state is State.OVER
    assert n_asked == len(orders)
    assert said == b"".join(expected)
