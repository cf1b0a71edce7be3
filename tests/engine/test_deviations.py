"""Structures on which a committee disagrees: what the log says of them, and which are kept."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpserver.engine import Assigner, DeviationWatch, Engine, Order, Request, StructureFile, deviations
from dpserver.errors import ConfigError, DataError
from dpserver.frames import Frames
from dpserver.ipi import Structures
from dpserver.train.data import read_system
from tests import structures
from tests.doubles import SPECIES, PairModel
from tests.engine.committees import PairCommittee

ase_io = pytest.importorskip("ase.io")

MODEL = PairCommittee()
FRAMES = [structures.cubic(seed) for seed in (1, 2, 3)]
LARGEST = MODEL.evaluate(Frames.concatenate(FRAMES)).max_force_deviation()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def seen(*frames: Frames, source: str = "unix:a") -> list[tuple[str, Frames, object]]:
    batch = Frames.concatenate(frames)
    return [(source, batch, MODEL.evaluate(batch))]


def kept(path: Path) -> list[object]:
    return ase_io.read(path, ":", format="extxyz")


# --- the log ---------------------------------------------------------------------------------------------------------


def test_nothing_is_said_below_the_threshold(clock, caplog):
    with DeviationWatch(LARGEST.max() * 1.001, SPECIES, clock=clock) as watch:
        watch.see(seen(*FRAMES))
    assert not caplog.messages


def test_the_line_names_the_worst(clock, caplog):
    worst = int(LARGEST.argmax())
    threshold = np.sort(LARGEST)[1] * 0.999
    with DeviationWatch(threshold, SPECIES, clock=clock) as watch:
        watch.see(seen(*FRAMES))
    committee = MODEL.evaluate(FRAMES[worst]).committee
    assert committee is not None
    atom = int(committee.force_deviation().argmax())
    (line,) = caplog.messages
    assert line.startswith(f"2 of 3 structures deviate by more than {threshold:g} eV/Å")
    assert line.endswith(f"unix:a: {LARGEST[worst]:.3g} eV/Å, atom {atom} ({SPECIES[FRAMES[worst].types[atom]]})")


def test_at_most_one_line_a_second(clock, caplog):
    with DeviationWatch(LARGEST.min() / 2, SPECIES, clock=clock) as watch:
        for _ in range(9):
            watch.see(seen(*FRAMES))
            clock.now += 0.25
        assert [line.split(" structures")[0] for line in caplog.messages] == ["3 of 3", "12 of 12", "12 of 12"]
        watch.see(seen(*FRAMES))
    assert caplog.messages[-1].startswith("3 of 3 "), "what is left is told at the end"


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_is_positive(threshold):
    with pytest.raises(ConfigError, match="--warn-deviation must be a positive number of eV/Å"):
        DeviationWatch(threshold, SPECIES)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_worst_of_each_simulation_is_kept(tmp_path, clock):
    file = tmp_path / "deviating.xyz"
    order = np.argsort(LARGEST)
    with DeviationWatch(LARGEST.min() / 2, SPECIES, StructureFile(file, SPECIES), clock) as watch:
        watch.see([*seen(*FRAMES, source="unix:a"), *seen(FRAMES[order[0]], source="inet:b:1")])
    atoms = kept(file)
    assert [a.info["source"] for a in atoms] == ["unix:a", "inet:b:1"]
    for found, k in zip(atoms, (order[-1], order[0]), strict=True):
        frame, result = FRAMES[k], MODEL.evaluate(FRAMES[k])
        assert result.committee is not None
        np.testing.assert_allclose(found.positions, frame.positions, atol=1e-7)
        np.testing.assert_allclose(found.cell.array, frame.cell[0], atol=1e-7)
        assert found.pbc.all()
        assert found.get_chemical_symbols() == [SPECIES[t] for t in frame.types]
        assert found.info["max_force_deviation"] == pytest.approx(LARGEST[k])
        assert found.info["committee_energy"] == pytest.approx(result.energy[0])
        np.testing.assert_allclose(found.arrays["committee_forces"], result.forces, atol=1e-7)
        np.testing.assert_allclose(found.arrays["force_deviation"], result.committee.force_deviation(), atol=1e-7)


def test_open_boundaries_are_kept(tmp_path):
    file = tmp_path / "deviating.xyz"
    with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES)) as watch:
        watch.see(seen(structures.slab()))
        watch.see(seen(structures.cluster()))
    slab, cluster = kept(file)
    assert slab.pbc.tolist() == [True, True, False]
    assert not cluster.pbc.any()
    assert not cluster.cell.any()


def test_a_structure_that_has_hardly_moved_is_kept_once(tmp_path):
    file, step = tmp_path / "deviating.xyz", np.full((24, 3), deviations.NEAR / 4)
    with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES)) as watch:
        for frame in (FRAMES[0], structures.moved(FRAMES[0], step), FRAMES[1], FRAMES[0]):
            watch.see(seen(frame))
        watch.see(seen(structures.moved(FRAMES[0], 4 * step)))
        watch.see(seen(FRAMES[0], source="unix:b"))
    assert len(kept(file)) == 4


def test_what_is_kept_does_not_change_with_the_memory_it_came_in(tmp_path):
    file, frame = tmp_path / "deviating.xyz", replace(FRAMES[0], positions=FRAMES[0].positions.copy())
    store = StructureFile(file, SPECIES)
    watch = DeviationWatch(1e-9, SPECIES, store)
    watch.see(seen(frame))
    frame.positions[:] = 0.0
    with watch:
        pass
    np.testing.assert_allclose(kept(file)[0].positions, FRAMES[0].positions, atol=1e-7)


def test_a_file_is_continued(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dpserver")
    file = tmp_path / "deviating.xyz"
    for k in (0, 1):
        with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES)) as watch:
            watch.see(seen(FRAMES[k]))
    assert len(kept(file)) == 2
    assert f"{file}: structures kept: 1" in caplog.messages


def test_there_is_an_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(deviations, "MOST_STRUCTURES", 2)
    file = tmp_path / "deviating.xyz"
    with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES)) as watch:
        for frame in FRAMES:
            watch.see(seen(frame))
    assert len(kept(file)) == 2
    assert f"{file}: 2 structures are kept; no more will be" in caplog.messages


def test_a_disk_that_fails_costs_the_file_and_nothing_else(tmp_path, caplog, monkeypatch):
    file = tmp_path / "deviating.xyz"
    store = StructureFile(file, SPECIES)
    file.unlink()
    file.mkdir()
    with DeviationWatch(1e-9, SPECIES, store) as watch:
        for frame in FRAMES:
            watch.see(seen(frame))
    assert sum(f"cannot write {file}: Is a directory" in line for line in caplog.messages) == 1


def test_a_bug_costs_the_file_and_nothing_else(tmp_path, caplog, monkeypatch):
    store = StructureFile(tmp_path / "deviating.xyz", SPECIES)
    monkeypatch.setattr(store, "_encode", lambda deviant: 1 // 0)
    start = structures.cubic()
    with DeviationWatch(1e-9, SPECIES, store) as watch:
        for k in range(deviations._WAITING + 10):
            watch.see(seen(structures.moved(start, np.full((24, 3), float(k)))))
    assert sum("internal error; no more structures are kept" in line for line in caplog.messages) == 1


def test_a_slow_disk_is_not_waited_for(tmp_path):
    store = StructureFile(tmp_path / "deviating.xyz", SPECIES)
    watch = DeviationWatch(1e-9, SPECIES, store)
    start = structures.cubic()
    for k in range(deviations._WAITING + 10):  # the thread that writes has not been started
        watch.see(seen(structures.moved(start, np.full((24, 3), float(k)))))
    with watch:
        pass
    assert len(kept(tmp_path / "deviating.xyz")) == deviations._WAITING


def test_training_refuses_predictions_and_takes_labels(tmp_path):
    """The file is for the reference method first."""
    file = tmp_path / "deviating.xyz"
    with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES)) as watch:
        watch.see(seen(FRAMES[0]))
        watch.see(seen(FRAMES[1]))
    with pytest.raises(DataError, match="has neither energy nor forces"):
        read_system(file, SPECIES)
    images = kept(file)
    for atoms, frame in zip(images, FRAMES, strict=False):
        label = PairModel().evaluate(frame)
        atoms.info["energy"], atoms.arrays["forces"] = label.energy[0], label.forces
    ase_io.write(file, images, format="extxyz")
    found = read_system(file, SPECIES)
    assert found.n_frames == 2
    np.testing.assert_allclose(
        found.forces, np.concatenate([PairModel().evaluate(f).forces for f in FRAMES[:2]]), atol=1e-7
    )


@pytest.mark.parametrize(
    ("content", "species", "message"),
    [
        ("PK\3\4", SPECIES, "exists and is no extended XYZ file"),
        (None, SPECIES, "cannot be written: No such file or directory"),
        ("", ("OW", "H"), "the model's species OW is no chemical element"),
    ],
)
def test_a_file_that_cannot_be_kept_is_refused_at_the_start(tmp_path, content, species, message):
    file = tmp_path / "deviating.xyz" if content is not None else tmp_path / "none" / "deviating.xyz"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        StructureFile(file, species)
    assert content is None or file.read_text() == content


# --- the engine ------------------------------------------------------------------------------------------------------


def request(frames: list[Frames], *, has_extras: bool = False, group: str = "unix:a") -> Request:
    sent = Structures(np.stack([f.positions for f in frames]), np.concatenate([f.cell for f in frames]))
    assigner = Assigner(MODEL, Order(("O", "H", "H"), "--species"), group)
    return Request(sent, assigner, has_extras=has_extras, group=group)


def test_the_engine_shows_its_answers_and_makes_extras_where_they_are_read(tmp_path, clock):
    file = tmp_path / "deviating.xyz"
    bad = replace(FRAMES[1], positions=np.full((24, 3), np.nan))
    with DeviationWatch(1e-9, SPECIES, StructureFile(file, SPECIES), clock) as watch:
        engine = Engine(MODEL, watch=watch)
        with_extras, without, refused = engine.answer(
            [
                request([FRAMES[0], FRAMES[2], FRAMES[2]], has_extras=True),
                request([FRAMES[1]], group="unix:b"),
                request([bad]),
            ]
        )
    assert [a.info["source"] for a in kept(file)] == ["unix:a", "unix:b"]
    assert isinstance(refused, Exception)
    assert without.extras == []
    first, second, copy = with_extras.extras
    assert first != second
    assert second == copy
