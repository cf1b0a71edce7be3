from __future__ import annotations

import re

import numpy as np
import pytest

from dpserver import neighbors
from dpserver.engine import Assigner, Order, TypedOrder
from dpserver.engine.species import order_from_parameters
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames
from dpserver.ipi import Structures
from tests import structures
from tests.doubles import PairModel

SEEN = np.array([[2.352, 0.885], [0.885, 1.36]])  # of liquid water
WATER = ("O", "H", "H")


class Copper(PairModel):
    species = ("Cu",)


def as_sent(frames: Frames, n_frames: int = 1) -> Structures:
    return Structures(np.stack([frames.positions] * n_frames), np.repeat(frames.cell, n_frames, axis=0))


def molecules() -> Frames:
    return structures.cubic()  # eight of O H H


@pytest.fixture
def xyz(tmp_path):
    path = tmp_path / "w.xyz"
    path.write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    return path


@pytest.mark.parametrize(
    ("parameters", "own", "template", "origin"),
    [
        ({"species": "O H H"}, "H O H", ("H", "H", "O"), "the peer's INIT species (O H H)"),
        ({}, "O H H", ("H", "H", "O"), "--species (O H H)"),
        ({"verbosity": "1"}, "O,H,H", None, "--species (O,H,H)"),
        ({}, None, WATER, "the model's own template"),
        ({}, None, WATER * 8, "the model's own template"),
    ],
)
def test_the_highest_authority_rules_and_is_logged(parameters, own, template, origin, caplog):
    caplog.set_level("INFO")
    order = None if own is None else Order.from_text(own, "--species")
    assigner = Assigner(PairModel(template=template, min_distance=SEEN), order, "unix:x")
    assigner.parameters = parameters
    frames = assigner.frames(as_sent(molecules()))
    np.testing.assert_array_equal(frames.types, [0, 1, 1] * 8)
    (record,) = caplog.records
    assert record.getMessage().startswith("unix:x: species of 24 atoms (O 8, H 16) are O H×2")
    assert record.getMessage().endswith(f"{origin}; boundaries: periodic")


def test_the_peers_template_file_rules_over_all(xyz, caplog):
    caplog.set_level("INFO")
    assigner = Assigner(PairModel(min_distance=SEEN), Order.from_text("H O H", "--species"), "unix:x")
    assigner.parameters = {"template": str(xyz)}
    np.testing.assert_array_equal(assigner.frames(as_sent(molecules())).types, [0, 1, 1] * 8)
    assert f"8 times, from the peer's INIT template ({xyz})" in caplog.text


def test_a_model_of_one_species_needs_no_order():
    model = Copper()
    model.min_distance = np.array([[0.5]])
    assert (Assigner(model, None, "x").frames(as_sent(molecules())).types == 0).all()


def test_without_any_order_nothing_is_guessed():
    with pytest.raises(StructureError, match=r"nothing says which atom is which of O, H.*--template FILE"):
        Assigner(PairModel(), None, "x").frames(as_sent(molecules()))


@pytest.mark.parametrize("template", [WATER * 3, WATER * 16, ("O", "H", "H", "H", "H")])
def test_a_count_that_does_not_fit_is_refused_by_whoever_rules(template):
    expected = rf"sent 24 atoms; expected {len(template)} or a whole multiple, in the order of"
    with pytest.raises(StructureError, match=expected + " the model's own template"):
        Assigner(PairModel(template=template), None, "x").frames(as_sent(molecules()))
    order = Order(template, "--species")
    with pytest.raises(StructureError, match=expected + " --species"):
        Assigner(PairModel(template=WATER), order, "x").frames(as_sent(molecules()))


@pytest.mark.parametrize(("symbol", "hint"), [("Na", ""), ("o", r"; did you mean O\?"), ("OW", r"; did you mean O\?")])
def test_an_unknown_species_is_refused_with_the_known_ones(symbol, hint):
    order = Order.from_text(f"O H {symbol}", "--species")
    complaint = (
        rf"species '{symbol}' \(atom 2 of --species \(O H {symbol}\)\) is unknown to the model, which knows O, H"
    )
    with pytest.raises(StructureError, match=complaint + hint + "$"):
        Assigner(PairModel(), order, "x").frames(as_sent(molecules()))


def test_a_peer_that_gives_two_orders_is_refused():
    assigner = Assigner(PairModel(), None, "x")
    assigner.parameters = {"template": "w.xyz", "species": "O H H"}
    with pytest.raises(StructureError, match="both a template and species"):
        assigner.frames(as_sent(molecules()))


def test_a_template_of_the_peer_that_is_missing_is_refused_by_name():
    assigner = Assigner(PairModel(), None, "x")
    assigner.parameters = {"template": "nowhere.xyz"}
    with pytest.raises(StructureError, match=r"'nowhere\.xyz' is no file"):
        assigner.frames(as_sent(molecules()))


@pytest.mark.parametrize(
    ("parameters", "symbols"),
    [({}, None), ({"species": "O H"}, ("O", "H")), ({"species": "[O H]"}, ("O", "H"))],
)
def test_orders_among_parameters(parameters, symbols):
    order = order_from_parameters(parameters)
    assert (order and order.symbols) == symbols


def test_an_empty_order_is_no_order():
    with pytest.raises(ConfigError, match="--species names no species"):
        Order.from_text(" , ", "--species")


def test_atoms_in_a_wrong_order_are_refused_with_the_pair_and_the_cause():
    frames = structures.water((3, 3, 2), pbc=(False, False, False))
    assigner = Assigner(PairModel(min_distance=SEEN), Order.from_text("H H O", "--species"), "x")
    with pytest.raises(StructureError) as caught:
        assigner.frames(as_sent(frames))
    told = re.match(
        r"atoms (\d+) \((\w)\) and (\d+) \((\w)\) are ([\d.]+) Å apart; no such pair was closer than ([\d.]+) Å in "
        r"training, and \d+ pairs are too close. Most likely the atoms are not in the order of --species \(H H O\)",
        str(caught.value),
    )
    assert told is not None
    i, a, j, b, distance, seen = told.groups()
    assert a == "HHO"[int(i) % 3]
    assert b == "HHO"[int(j) % 3]
    assert float(distance) == pytest.approx(
        np.linalg.norm(frames.positions[int(i)] - frames.positions[int(j)]), abs=1e-3
    )
    assert float(seen) == SEEN["OH".index(a), "OH".index(b)]


def test_a_wrong_order_is_found_where_training_has_seen_contacts():
    # Single pairs were as close in training as pairs of these names are in the wrong order, but never so many.
    contacts = np.array([[2.05, 0.885], [0.885, 1.055]])
    frames = structures.water((4, 4, 4))
    order = Order(("O", "H", "H"), "--species")
    blocks = np.argsort(frames.types, kind="stable")  # all O first
    sent = Structures(frames.positions[None, blocks], frames.cell)
    Assigner(PairModel(min_distance=contacts), order, "x").frames(sent)  # not found by single pairs
    crowds = np.array([[2.6, 0.92], [0.92, 1.42]])
    model = PairModel(min_distance=contacts, crowd_distance=crowds)
    expected = r"at least 4 pairs O-O are closer than 1\.950 Å; in training not one was closer than 2\.050 Å\. "
    with pytest.raises(StructureError, match=expected + ".* not in the order of --species"):
        Assigner(model, order, "x").frames(sent)
    right = Structures(frames.positions[None], frames.cell)
    assert len(Assigner(model, order, "x").frames(right).types) == 192


def test_many_pairs_as_close_as_one_in_training_are_no_mistake():
    frames, order = structures.water((4, 4, 4)), Order(("O", "H", "H"), "--species")
    edges, seen = neighbors.build(frames, 4.0), np.full((2, 2), np.inf)
    np.minimum.at(seen, (frames.types[edges.centre], frames.types[edges.neighbour]), edges.distance)
    model = PairModel(min_distance=seen, crowd_distance=np.full((2, 2), 4.0))
    Assigner(model, order, "x").frames(Structures(frames.positions[None], frames.cell))


def test_a_pair_that_training_never_met_sets_no_limit():
    seen = np.array([[np.inf, np.inf], [np.inf, 0.1]])
    Assigner(PairModel(min_distance=seen), Order(WATER, "--species"), "x").frames(as_sent(molecules()))
    Assigner(PairModel(), Order(WATER, "--species"), "x").frames(as_sent(molecules()))


def test_only_the_first_frame_of_a_size_is_held_against_the_training_set():
    assigner = Assigner(PairModel(min_distance=SEEN), Order(WATER, "--species"), "x")
    frames = molecules()
    assigner.frames(as_sent(frames))
    frames.positions[1] = frames.positions[0] + 0.1
    assigner.frames(as_sent(frames))
    other = Structures(frames.positions[None, :6], frames.cell)
    with pytest.raises(
        StructureError, match=r"no such pair was closer than 0\.885 Å in training, and 1 pair is too close"
    ):
        assigner.frames(other)


def test_a_refused_first_frame_does_not_count_as_seen():
    assigner = Assigner(PairModel(min_distance=SEEN), Order(WATER[::-1], "--species"), "x")
    for _ in range(2):
        with pytest.raises(StructureError, match="no such pair was closer"):
            assigner.frames(as_sent(molecules()))


@pytest.mark.parametrize(
    ("frames", "pbc"), [(structures.cluster(), [False] * 3), (structures.slab(), [True, True, False])]
)
def test_lattice_vectors_of_zero_are_open_directions(frames, pbc):
    made = Assigner(PairModel(), Order(WATER, "--species"), "x").frames(as_sent(frames, 2))
    assert made.pbc.tolist() == [pbc, pbc]


@pytest.mark.parametrize(
    ("zero", "boundaries"),
    [([], "periodic"), ([0, 1, 2], "open"), ([2], "open along c"), ([0, 1], "open along a and b")],
)
def test_the_boundaries_are_logged_and_warned_of_once_where_some_are_open(zero, boundaries, caplog):
    caplog.set_level("INFO")
    frames = molecules()
    frames.cell[0, zero] = 0
    assigner = Assigner(PairModel(), Order(WATER, "--species"), "unix:x")
    for _ in range(3):
        assigner.frames(as_sent(frames, 2))
    (told,) = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert told.endswith(f"; boundaries: {boundaries}")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    damaged = (
        f"unix:x: the structure is {boundaries}, where the lattice vector is zero; if this is not a slab or wire, "
        "the cell is damaged"
    )
    assert warnings == ([damaged] if "along" in boundaries else [])


def test_a_cell_that_loses_its_vectors_later_is_warned_of(caplog):
    frames = molecules()
    assigner = Assigner(PairModel(), Order(WATER, "--species"), "unix:x")
    for zero in ([], [1], [], [0, 1, 2], [0, 1, 2], []):
        cell = frames.cell.copy()
        cell[0, zero] = 0
        assigner.frames(Structures(frames.positions[None], cell))
    first, second = (r.getMessage() for r in caplog.records)
    assert "open along b" in first
    assert second == "unix:x: the cell has become zero, and the structure open"


def test_a_batch_is_laid_out_frame_after_frame():
    frames = molecules()
    made = Assigner(PairModel(), Order(WATER, "--species"), "x").frames(as_sent(frames, 3))
    assert made.n_frames == 3
    for frame in made:
        np.testing.assert_array_equal(frame.positions, frames.positions)
        np.testing.assert_array_equal(frame.types, frames.types)


def test_names_of_a_force_field_are_types(tmp_path):
    (tmp_path / "conf.gro").write_text("3\nwater\nOW 0 0 0\nHW1 0 0 1\nHW2 0 1 0\n")
    order = TypedOrder.from_names(tmp_path / "conf.gro", {"OW": 0, "HW1": 1, "HW2": 1}, "water.json")
    np.testing.assert_array_equal(order.types(("O", "H")), [0, 1, 1])
    assert (order.symbols, order.summary()) == (("OW", "HW1", "HW2"), "OW HW1 HW2")
    with pytest.raises(StructureError, match="gives 'HW1' the type 1; the model has 0 to 0: O"):
        order.types(("O",))
    with pytest.raises(ConfigError, match=r"atom 2 of .*conf\.gro is called 'HW2', to which water\.json gives no type"):
        TypedOrder.from_names(tmp_path / "conf.gro", {"OW": 0, "HW1": 1}, "water.json")
