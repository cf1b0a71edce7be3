import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, DataError
from dpserver.models.config import ModelConfig, parse
from dpserver.train import room
from dpserver.train.data import read_system
from dpserver.train.data_config import DataConfig
from dpserver.train.initial import initial_model
from dpserver.train.loss_config import LossConfig
from dpserver.train.systems import GRAPH_EDGES, Sample, System, check_labels, open_systems
from tests.train import teacher

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path) -> System:
    teacher.write_npy(tmp_path / "data", 4)
    return System(read_system(tmp_path / "data", ("O", "H")), 4.0, 2)


def test_a_batch_is_its_frames_in_the_order_asked(system):
    graph, labels = system.batch([2, 0], CPU)
    result = teacher.teacher().evaluate(graph.frames)
    assert result.energy == pytest.approx(labels.values["energy"].numpy(), abs=1e-9)
    assert result.forces == pytest.approx(labels.values["forces"].numpy(), abs=1e-11)
    assert result.virial == pytest.approx(labels.values["virial"].numpy(), abs=1e-10)
    assert (labels.values["energy"].numpy() == system.data.energy[[2, 0]]).all()


def test_neighbour_lists_are_built_once_while_there_is_room(system, monkeypatch):
    assert system.edges(1) is system.edges(1)
    monkeypatch.setattr(room, "MAX_CACHED_EDGES", 0)
    full = System(system.data, 4.0, 2)
    assert full.edges(1) is not full.edges(1)
    assert (full.edges(1).distance == system.edges(1).distance).all()


def test_a_batch_of_one_frame_is_kept_ready_while_there_is_room(system, monkeypatch):
    first = system.batch([1], CPU)
    assert system.batch(np.array([1]), CPU)[0] is first[0]
    assert system.batch([1, 2], CPU)[0] is not first[0]
    monkeypatch.setattr(room, "MAX_CACHED_EDGES", 2 * len(first[0].centre))
    full = System(system.data, 4.0, 2)
    assert full.batch([1], CPU)[0] is not full.batch([1], CPU)[0]
    assert full.edges(1) is full.edges(1)
    system.data = system.data.subset([0, 0, 0, 0])
    assert (system.batch([1], CPU)[1].values["energy"].numpy() == system.data.energy[1]).all()


def test_systems_share_one_room(system, tmp_path):
    first, second = (System(system.data, 4.0, 2, system.room) for _ in range(2))
    before = system.room.left
    graph, _ = first.batch([0], CPU)
    n_bytes = room.EDGE_BYTES * len(graph.centre)
    assert system.room.left == before - GRAPH_EDGES * n_bytes
    second.edges(0)
    assert system.room.left == before - (GRAPH_EDGES + 1) * n_bytes
    first.data = first.data.subset([0, 0])
    first.batch([0], CPU)
    assert system.room.left == before - (GRAPH_EDGES + 1) * n_bytes
    assert first.subset([0]).room is system.room
    second.subset([0])
    assert system.room.left == before


def test_edges_are_in_the_order_of_graphs(system):
    edges, (graph, _) = system.edges(1), system.batch([1], CPU)
    assert (edges.centre == graph.centre.numpy()).all()
    assert (edges.neighbour == graph.neighbour.numpy()).all()
    assert np.linalg.norm(graph.vectors().numpy(), axis=1) == pytest.approx(edges.distance, abs=1e-12)


def test_labels_the_loss_asks_for_must_be_there(tmp_path):
    teacher.write_npy(tmp_path / "data", 2, has_virial=False)
    system = System(read_system(tmp_path / "data", ("O", "H")), 4.0, 2)
    assert check_labels([system], LossConfig().labels) == []
    wanted = LossConfig(start_pref_v=0.1, limit_pref_v=0.1).labels
    with pytest.raises(DataError, match=r"data has no virial, but the loss asks .* loss\.start_pref_v"):
        check_labels([system], wanted)
    teacher.write_npy(tmp_path / "whole", 2)
    whole = System(read_system(tmp_path / "whole", ("O", "H")), 4.0, 2)
    (note,) = check_labels([system, whole], wanted)
    assert note.endswith("data: there the loss goes without that term")
    with pytest.raises(DataError, match=r"data has nothing of what the loss asks for \(virial\)"):
        check_labels([system, whole], {"virial": "x"})


def opened(tmp_path, **options):
    config = parse(DataConfig, {"systems": str(tmp_path / "data"), **options})
    return open_systems(config, parse(ModelConfig, teacher.MODEL))


def test_frames_whose_atoms_come_too_close_are_left_out(system, tmp_path):
    closest = sorted(system.closest(k) for k in range(4))
    (kept,) = opened(tmp_path, min_pair_dist=(closest[1] + closest[2]) / 2)
    assert kept.data.n_frames == 2
    assert min(kept.closest(k) for k in range(2)) == closest[2]
    with pytest.raises(DataError, match="leaves no frame of the data"):
        opened(tmp_path, min_pair_dist=3.0)


def test_frames_that_are_too_large_are_left_out(system, tmp_path):
    assert opened(tmp_path, batch_size="filter:24")[0].data.n_frames == 4
    with pytest.raises(DataError, match="leaves no frame of the data"):
        opened(tmp_path, batch_size="filter:23")


def test_systems_are_mixed_on_demand(tmp_path):
    for name in ("data/a", "data/b"):
        teacher.write_npy(tmp_path / name, 2)
    assert len(opened(tmp_path)) == 2
    (mixed,) = opened(tmp_path, batch_size="mixed:3")
    assert mixed.data.n_frames == 4
    with pytest.raises(ConfigError, match="sys_probs: has no meaning"):
        opened(tmp_path, batch_size="mixed:3", sys_probs=[0.5, 0.5])


def test_data_are_numbered_by_the_model_whatever_their_own_numbers_mean(system, tmp_path):
    model = parse(ModelConfig, {**teacher.MODEL, "type_map": ["H", "C", "O"]})
    (by_name,) = open_systems(parse(DataConfig, {"systems": str(tmp_path / "data")}), model)
    assert (by_name.data.frames.types == np.where(system.data.frames.types == 0, 2, 0)).all()
    (tmp_path / "data" / "type_map.raw").unlink()
    (by_number,) = open_systems(parse(DataConfig, {"systems": str(tmp_path / "data")}), model, ("O", "H"))
    assert (by_number.data.frames.types == by_name.data.frames.types).all()
    assert by_number.data.species == ("H", "C", "O")


def test_parameters_the_model_does_not_take_are_left_alone(system, tmp_path):
    for k in range(2):
        np.save(tmp_path / "data" / f"set.{k:03d}" / "fparam.npy", np.ones((2, 1)))
    (plain,) = opened(tmp_path)
    assert plain.data.frames.fparam is None
    fitting = {**teacher.MODEL["fitting_net"], "numb_fparam": 1}
    model = parse(ModelConfig, {**teacher.MODEL, "fitting_net": fitting})
    (with_them,) = open_systems(parse(DataConfig, {"systems": str(tmp_path / "data")}), model)
    assert (with_them.data.frames.fparam == 1).all()
    wider = parse(ModelConfig, {**teacher.MODEL, "fitting_net": {**fitting, "numb_fparam": 2}})
    with pytest.raises(DataError, match="data: "):
        open_systems(parse(DataConfig, {"systems": str(tmp_path / "data")}), wider)


def test_a_sample_is_spread_over_the_frames_and_can_be_taken_twice(system):
    sample = Sample([system], [3])
    positions = [graph.frames.positions for graph in sample]
    assert [p.tolist() for p in positions] == [system.data.subset([k]).frames.positions.tolist() for k in (0, 2, 3)]
    assert len(list(sample)) == 3
    assert len(list(Sample([system]))) == 4


def test_normalisation_is_that_of_all_slots(system):
    """Mean and deviation of R̃ with every empty slot written out as zero, species by species."""
    potential = initial_model(parse(ModelConfig, teacher.MODEL), [system], [10], 0, "double")
    n_slots = sum(potential.descriptor.sel)
    for centre in range(2):
        radial, angular = [], []
        for k in range(system.data.n_frames):
            graph, _ = system.batch([k], CPU)
            rows = potential.descriptor.environment(graph.vectors()).numpy()
            for atom in graph.atoms[centre].tolist():
                mine = rows[graph.centre.numpy() == atom]
                padded = np.concatenate([mine, np.zeros((n_slots - len(mine), 4))])
                radial.append(padded[:, 0])
                angular.append(padded[:, 1:])
        davg, dstd = potential.descriptor.davg[centre].numpy(), potential.descriptor.dstd[centre].numpy()
        assert davg == pytest.approx([np.mean(radial), 0, 0, 0])
        assert dstd[0] == pytest.approx(np.std(radial))
        assert dstd[1:] == pytest.approx(np.full(3, np.std(angular)))


def test_loc_frame_is_normalised_feature_by_feature(system):
    potential = initial_model(parse(ModelConfig, teacher.LOC_FRAME), [system], [10], 0, "double")
    features = [potential.descriptor(*_graph_and_vectors(system, k)) for k in range(system.data.n_frames)]
    for centre in range(2):
        d = torch.cat([f[centre].features for f in features]).numpy()
        assert d.mean(axis=0) == pytest.approx(np.zeros(d.shape[1]), abs=1e-9)
        is_varied = potential.descriptor.dstd[centre].numpy() > 0.01
        assert is_varied.any()
        assert d.std(axis=0)[is_varied] == pytest.approx(np.ones(is_varied.sum()))


def _graph_and_vectors(system: System, frame: int):
    graph, _ = system.batch([frame], CPU)
    return graph, graph.vectors()


def test_davg_stays_zero_on_demand(system):
    config = {**teacher.MODEL, "descriptor": {**teacher.MODEL["descriptor"], "set_davg_zero": True}}
    potential = initial_model(parse(ModelConfig, config), [system], [10], 0, "double")
    assert not potential.descriptor.davg.any()
    assert (potential.descriptor.dstd < 1).all()
