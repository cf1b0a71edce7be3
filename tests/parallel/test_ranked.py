"""Rank 0 with ranks that are threads: the same answers as alone, whatever is asked and whatever goes wrong."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpserver.engine import Accompanied
from dpserver.engine.runner import Runner
from dpserver.errors import ConfigError, DeviceError, ModelFileError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.tensors import TensorModel
from dpserver.parallel.crew import Crew
from dpserver.parallel.packing import unpack
from dpserver.parallel.plan import Decompose
from dpserver.parallel.worker import Worker
from tests import structures
from tests.engine.test_companions import PointCharges
from tests.models import test_tensors
from tests.parallel import broadcast
from tests.patience import PATIENCE
from tests.ranks import Springs, Together, World, patience, ranked

WAYS = list(Decompose)


def agree(found: ForceResult, expected: ForceResult) -> None:
    scale = {"rtol": 1e-10, "atol": 1e-11}
    np.testing.assert_allclose(found.energy, expected.energy, **scale)
    np.testing.assert_allclose(found.forces, expected.forces, **scale)
    np.testing.assert_allclose(found.virial, expected.virial, **scale)
    np.testing.assert_allclose(found.atom_energy, expected.atom_energy, **scale)
    np.testing.assert_array_equal(found.frame_idx, expected.frame_idx)
    assert (found.committee is None) == (expected.committee is None)
    if found.committee is not None and expected.committee is not None:
        np.testing.assert_allclose(found.committee.energy, expected.committee.energy, **scale)
        np.testing.assert_allclose(found.committee.forces, expected.committee.forces, **scale)
        np.testing.assert_allclose(found.committee.virial, expected.committee.virial, **scale)


def moved(frames: Frames, seed: int, scale: float = 0.05) -> Frames:
    rng = np.random.default_rng(seed)
    strain = np.eye(3) + 0.004 * rng.normal(size=(3, 3))
    positions = frames.positions @ strain + rng.normal(scale=scale, size=frames.positions.shape)
    return replace(frames, positions=positions, cell=frames.cell @ strain)


BATCHES = {
    "one": structures.water((4, 3, 3)),
    "triclinic": structures.triclinic(),
    "slab": structures.water((4, 4, 1), structures.SHEAR, (True, True, False)),
    "droplet": structures.water((3, 3, 3), None, (False, False, False)),
    "beads": Frames.concatenate(structures.water(seed=k) for k in range(7)),
    "mixed": Frames.concatenate(
        [structures.water((4, 4, 4)), structures.wire(), structures.cubic(), structures.slab(), structures.cubic(5)]
    ),
    "one atom": Frames.single([[0.0, 0.0, 0.0]], [1]),
}


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("way", WAYS)
def test_ranks_say_what_one_says(n_ranks, way):
    model = Springs()
    with ranked(model, n_ranks, lambda rank, file: Springs(), decompose=way) as found:
        for name, frames in BATCHES.items():
            for step in range(3):
                now = moved(frames, step) if step else frames
                agree(found.evaluate(now), model.evaluate(now))
            assert found.timings.n, name


@given(
    n_ranks=st.integers(2, 5),
    way=st.sampled_from(WAYS),
    batches=st.lists(
        st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from([(1, 1, 1), (2, 1, 1), (3, 2, 1)]), st.integers(0, 7)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_batches_in_any_order(n_ranks, way, batches):
    model = Springs(2.5)
    with ranked(model, n_ranks, lambda rank, file: Springs(2.5), decompose=way) as found:
        for batch in batches:
            frames = Frames.concatenate(
                structures.water(n, structures.SHEAR, tuple(d < n_open for d in range(3)), seed)  # type: ignore[arg-type]
                for n_open, n, seed in batch
            )
            agree(found.evaluate(frames), model.evaluate(frames))


@pytest.mark.parametrize("way", WAYS)
def test_members_and_parameters_go_with_the_structures(way):
    model = Springs(n_members=3)
    rng = np.random.default_rng(0)
    frames = Frames.concatenate([structures.water((3, 2, 2)), structures.triclinic()])
    given_ = replace(
        frames, fparam=rng.uniform(1, 2, (frames.n_frames, 1)), aparam=rng.uniform(1, 2, (frames.n_atoms, 1))
    )
    with ranked(model, 3, lambda rank, file: Springs(n_members=3), decompose=way) as found:
        for batch in (given_, frames, replace(given_, aparam=None)):
            agree(found.evaluate(batch), model.evaluate(batch))
    assert abs(model.evaluate(given_).energy - model.evaluate(frames).energy).min() > 0.1


class Water(Springs):
    species = ("O", "H")


def tensors(kind: str, rcut: float) -> TensorModel:
    config = {
        "type_map": ["H", "O"],
        "descriptor": {**test_tensors.DESCRIPTOR, "sel": [60, 120], "rcut": rcut},
        "fitting_net": {"neuron": [6], "type": kind},
    }
    return TensorModel(parse(ModelConfig, config), seed=5)


def accompanied(rcut: float) -> Accompanied:
    """Springs with models of dipoles and polarizabilities that see further, or less far, and number types otherwise."""
    return Accompanied(Water(), tensors("dipole", rcut), tensors("polar", rcut), has_born_charges=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rcut", [2.0, 4.5])
def test_dipoles_and_polarizabilities_come_from_all_ranks(way, rcut):
    model = accompanied(rcut)
    with ranked(model, 3, lambda rank, file: accompanied(rcut), decompose=way) as found:
        assert found.rcut == max(rcut, 3.0)
        for frames in (structures.water((3, 3, 2)), BATCHES["mixed"].part(1, 5)):
            result, expected = found.evaluate(frames), model.evaluate(frames)
            agree(result, expected)
            for name in ("dipole", "polar", "born_charges"):
                a, b = getattr(result.responses, name), getattr(expected.responses, name)
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max(), err_msg=name)
        if way is Decompose.SPACE:
            assert found.world.n_messages > 2 * 4


def test_one_that_stands_beside_and_cannot_be_cut_is_never_cut():
    model = Accompanied(Water(), PointCharges())
    frames = structures.water((4, 4, 4))
    with ranked(model, 2, lambda rank, file: model) as found:
        assert found.evaluate(frames).responses is not None
        assert "whole structures over 1 rank" in found.choice
    with (
        pytest.raises(ConfigError, match="--decompose space"),
        ranked(model, 2, lambda rank, file: model, decompose=Decompose.SPACE),
    ):
        pass


def test_files_of_all_models_arrive():
    def load(rank: int, *files: bytes) -> Springs:
        assert files == (b"energies", b"", b"polar")
        return Springs()

    world = World(2)
    thread = threading.Thread(target=Worker(world.group(1), lambda *files: load(1, *files), patience()).run)
    thread.start()
    crew = Crew(world.group(0), world.places(), patience())
    crew.send_model(b"energies", b"", b"polar")
    assert crew.await_model() == [""]
    crew.dismiss()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["one", "triclinic", "slab", "droplet", "one atom"])
@pytest.mark.parametrize("n_ranks", [2, 5])
def test_fixed_lists_say_what_bcast_and_reduce_say(n_ranks, name):
    """The simple way has the whole structure in each rank and knows no lists; see `broadcast`."""
    together, frames = Together(n_ranks), moved(BATCHES[name], 3)
    others = [
        threading.Thread(target=broadcast.evaluate, args=(together.of(rank), Springs())) for rank in range(1, n_ranks)
    ]
    for thread in others:
        thread.start()
    simple = broadcast.evaluate(together.of(0), Springs(), frames)
    for thread in others:
        thread.join(PATIENCE)
    with ranked(Springs(), n_ranks, lambda rank, file: Springs(), decompose=Decompose.SPACE) as found:
        found.evaluate(BATCHES[name])  # so that the lists are those of an earlier step
        agree(found.evaluate(frames), simple)
    agree(simple, Springs().evaluate(frames))


def test_a_step_is_sent_as_numbers_alone_until_a_decomposition_ends():
    frames = structures.water((4, 3, 3))
    with ranked(Springs(), 2, lambda rank, file: Springs(), decompose=Decompose.SPACE) as found:
        found.evaluate(frames)
        counts = []
        for shift in (0.0, 0.1, 0.2, 0.9):
            before = found.world.n_messages
            found.evaluate(replace(frames, positions=frames.positions + np.array([shift, 0, 0])))
            drifted = frames.positions.copy()
            drifted[0] += shift
            found.evaluate(replace(frames, positions=drifted))
            counts.append(found.world.n_messages - before)
        assert counts[:3] == [8, 8, 8]  # head and body, there and back, twice
        assert counts[3] > 8
        assert found._cuts.n_built >= 2


def test_all_ranks_compute_at_the_same_time():
    """Each waits in its evaluation for all the others to be in theirs: none may be asked after another has answered."""
    n_ranks = 4
    all_there = threading.Barrier(n_ranks, timeout=PATIENCE)

    class Together(Springs):
        def evaluate(self, frames: Frames) -> ForceResult:
            all_there.wait()
            return super().evaluate(frames)

    for way, frames in ((Decompose.SPACE, structures.water((4, 3, 3))), (Decompose.BEADS, BATCHES["beads"])):
        with ranked(Together(), n_ranks, lambda rank, file: Together(), decompose=way) as found:
            for _ in range(3):
                agree(found.evaluate(frames), Springs().evaluate(frames))


def test_a_part_that_takes_longer_becomes_smaller(monkeypatch):
    """Atoms of one half cost four times as much, by a clock of each thread that only they move."""
    clock = threading.local()

    class Costly(Springs):
        def evaluate(self, frames: Frames) -> ForceResult:
            is_mine = np.ones(frames.n_atoms, dtype=bool) if frames.is_ghost is None else ~frames.is_ghost
            is_costly = frames.positions[is_mine, 0] % length > length / 2
            self.seconds = 1e-3 * float((1 + 3 * is_costly).sum())
            clock.now = now() + self.seconds
            return super().evaluate(frames)

    def now() -> float:
        return getattr(clock, "now", 0.0)

    fake = SimpleNamespace(perf_counter=now, perf_counter_ns=lambda: int(1e9 * now()))
    for module in ("ranked", "worker"):
        monkeypatch.setattr(f"dpserver.parallel.{module}.time", fake)
    frames = structures.water((8, 4, 4))
    length = frames.cell[0, 0, 0]
    models, rng = [Costly() for _ in range(3)], np.random.default_rng(0)
    with ranked(models[0], 3, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        found.evaluate(frames)
        at_first = [model.seconds for model in models]
        for _ in range(30):
            noise = rng.normal(scale=0.01, size=frames.positions.shape)
            later = replace(frames, positions=frames.positions + noise)
            agree(found.evaluate(later), Springs().evaluate(later))
        assert 2 <= found._cuts.n_built <= 4
    at_last = [model.seconds for model in models]
    assert max(at_first) > 1.3 * np.mean(at_first)
    assert max(at_last) < 1.2 * np.mean(at_last)


def test_a_bead_finds_its_decomposition_in_any_order():
    beads = [moved(structures.water((3, 3, 3)), k, 0.6) for k in range(4)]
    model = Springs()
    with ranked(model, 2, lambda rank, file: Springs(), decompose=Decompose.SPACE) as found:
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2], [1, 2, 3, 0]):
            frames = Frames.concatenate(beads[k] for k in order)
            agree(found.evaluate(frames), model.evaluate(frames))
        assert found._cuts.n_built == 4


def refuse_heavy(error: Exception):
    """Raise for batches that hold an atom far out."""
    return lambda frames: error if (np.abs(frames.positions) > 500).any() else None


@pytest.mark.parametrize("way", [Decompose.BEADS, Decompose.SPACE])
@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_refused_structure_costs_nobody_else_anything(way, bad):
    refuse = refuse_heavy(StructureError("too far out"))
    model = Springs(mistakes=refuse)
    parts = [structures.water(seed=k) for k in range(7)]
    good = parts[bad]
    parts[bad] = replace(good, positions=good.positions + 1000.0, pbc=np.zeros_like(good.pbc), cell=0 * good.cell)
    with ranked(model, 3, lambda rank, file: Springs(mistakes=refuse), decompose=way) as found:
        for _ in range(2):
            outcomes = Runner(found).run(parts)
            assert str(outcomes[bad]) == "too far out"
            for k, part in enumerate(parts):
                if k != bad:
                    agree(outcomes[k], Springs().evaluate(part))
        parts[bad] = good
        for outcome, part in zip(Runner(found).run(parts), parts, strict=True):
            agree(outcome, Springs().evaluate(part))


@pytest.mark.parametrize("way", [Decompose.BEADS, Decompose.SPACE])
def test_a_refusal_has_the_numbers_of_the_whole(way):
    """Two atoms on top of each other, in a structure that is cut, and in the fifth of a batch of many."""
    large = structures.water((4, 4, 4))
    overlap = large.positions.copy()
    overlap[100] = overlap[7] + 0.001
    batch = [structures.water(seed=k) for k in range(4)]
    with ranked(Springs(), 3, lambda rank, file: Springs(), decompose=way) as found:
        with pytest.raises(StructureError, match=r"^atoms (7 and 100|100 and 7) are"):
            found.evaluate(replace(large, positions=overlap))
        with pytest.raises(StructureError, match=r"^frame 4: atoms (7 and 100|100 and 7) are"):
            found.evaluate(Frames.concatenate([*batch, replace(large, positions=overlap), *batch]))
        agree(found.evaluate(large), Springs().evaluate(large))


def test_a_model_with_terms_that_are_not_local_is_never_cut():
    class Whole(Springs):
        can_cut = False

    class Silent(Springs):
        can_cut = None  # a model that does not say is taken at the worst

    frames = structures.water((4, 4, 4))
    for kind in (Whole, Silent):
        with ranked(kind(), 2, lambda rank, file, kind=kind: kind()) as found:
            found.warm_up()
            agree(found.evaluate(frames), Springs().evaluate(frames))
            assert "whole structures over 1 rank" in found.choice
    with (
        pytest.raises(ConfigError, match="cannot be evaluated in parts"),
        ranked(Whole(), 2, lambda rank, file: Whole(), decompose=Decompose.SPACE),
    ):
        pass


def test_full_memory_of_a_rank_cuts_the_batch():
    """As in one process: evaluated in halves until they fit."""
    full = lambda frames: MemoryError("no room") if frames.n_atoms > 60 else None  # noqa: E731
    model = Springs(mistakes=full)
    parts = [structures.water(seed=k) for k in range(12)]
    with ranked(model, 3, lambda rank, file: Springs(mistakes=full), decompose=Decompose.BEADS) as found:
        runner = Runner(found)
        for outcome, part in zip(runner.run(parts), parts, strict=True):
            agree(outcome, Springs().evaluate(part))
        assert 60 < runner.max_atoms < 12 * 24


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_unexpected_error_names_the_rank_and_ends_the_service(rank):
    def mistake(who):
        return lambda frames: ZeroDivisionError("by zero") if who == rank and frames.n_frames > 1 else None

    beads = Frames.concatenate(structures.water(seed=k) for k in range(6))
    with ranked(Springs(mistakes=mistake(0)), 3, lambda who, file: Springs(mistakes=mistake(who))) as found:
        with pytest.raises(DeviceError, match=rf"rank {rank} \(process \d+ on here\) failed: ZeroDivisionError: by"):
            found.evaluate(beads)
        agree(found.evaluate(structures.triclinic()), Springs().evaluate(structures.triclinic()))


def test_answers_that_are_left_end_the_service(monkeypatch):
    """Memory that is full while one of them is read: asked again, the ranks would fall out of step."""
    answers = []

    def first_fails(*given):
        answers.append(given)
        if len(answers) == 1:
            raise MemoryError("no room")
        return unpack(*given)

    beads = Frames.concatenate(structures.water(seed=k) for k in range(6))
    monkeypatch.setattr("dpserver.parallel.ranked.unpack", first_fails)
    n_threads = threading.active_count()
    with (
        pytest.raises(DeviceError, match=r"rank 0 .* failed to take answers in: MemoryError: no room"),
        ranked(Springs(), 3, lambda rank, file: Springs(), decompose=Decompose.BEADS) as found,
    ):
        found.evaluate(beads)
    assert len(answers) == 1
    assert threading.active_count() == n_threads


@pytest.mark.parametrize("call", ["isend", "irecv"])
def test_what_mpi_notices_first_is_put_down_to_the_rank_that_has_gone(call):
    """Reading from the memory of a process that is gone fails before the connection to it is known to be broken."""
    checks = []

    def check() -> None:
        checks.append(None)
        if len(checks) > 3:
            raise DeviceError("rank 1 was killed by signal 9")

    with ranked(Springs(), 2, lambda rank, file: Springs(), decompose=Decompose.SPACE) as found:
        crew = found._crew
        crew._patience = replace(crew._patience, check=check)
        group, name = crew.channels[1]._group, call

        class Broken:
            def __getattr__(self, asked):
                return fail if asked == name else getattr(group, asked)

        def fail(*given: object) -> None:
            raise RuntimeError("process_vm_readv failed")

        crew.channels[1]._group = Broken()
        with pytest.raises(DeviceError, match=r"^rank 1 was killed by signal 9$"):
            found.evaluate(BATCHES["one"])
        crew.channels[1]._group = group
        if call == "irecv":  # the answer is there still
            crew.channels[1].receive_head()
            crew.channels[1].receive_body(crew.channels[1]._head[-1])
    assert len(checks) == 4


@pytest.mark.parametrize("kind", [ModelFileError, DeviceError, ConfigError])
def test_a_rank_that_cannot_load_says_so_by_its_name(kind):
    def load(rank, file):
        assert file == b"a model file"
        if rank == 2:
            raise kind("no good")
        return Springs()

    with pytest.raises(kind, match=r"^rank 2 \(process \d+ on here\): no good$"), ranked(Springs(), 4, load):
        pass


def test_any_other_failure_to_load_is_a_lost_rank():
    def load(rank, file):
        raise RuntimeError("what is this")

    with (
        pytest.raises(DeviceError, match=r"rank 1 .* failed: RuntimeError: what is this"),
        ranked(Springs(), 2, load),
    ):
        pass


def test_ghosts_are_not_for_ranks():
    frames = structures.cubic()
    with ranked(Springs(), 2, lambda rank, file: Springs()) as found, pytest.raises(ConfigError, match="has ghosts"):
        found.evaluate(replace(frames, is_ghost=np.arange(frames.n_atoms) > 3))


def test_what_no_model_can_answer_is_refused_before_it_is_sent():
    with ranked(Springs(), 2, lambda rank, file: Springs(), decompose=Decompose.SPACE) as found:
        before = found.world.n_messages
        with pytest.raises(StructureError, match="type 2"):
            found.evaluate(Frames.single([[0.0, 0, 0]], [2]))
        dense = Frames.single(np.zeros((9, 3)) + np.arange(9)[:, None], [0] * 9, np.eye(3) * 0.1)
        with pytest.raises(StructureError, match="neighbours an atom"):
            found.evaluate(dense)
        assert found.world.n_messages == before
