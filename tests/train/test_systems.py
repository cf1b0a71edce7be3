import numpy as np
import pytest
import torch

from dpserver.errors import DataError
from dpserver.models.config import ModelConfig, parse
from dpserver.train import systems as module
from dpserver.train.config import LossConfig
from dpserver.train.data import read_system
from dpserver.train.systems import System, check_labels, initial_potential
from tests.train import teacher

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path) -> System:
    teacher.write_npy(tmp_path / "data", 4)
    return System(read_system(tmp_path / "data", ("O", "H")), 4.0, 2)


def test_a_batch_is_its_frames_in_the_order_asked(system):
    graph, labels = system.batch([2, 0], CPU)
    result = teacher.teacher().evaluate(graph.frames)
    assert result.energy == pytest.approx(labels.energy.numpy(), abs=1e-9)
    assert result.forces == pytest.approx(labels.forces.numpy(), abs=1e-11)
    assert result.virial == pytest.approx(labels.virial.numpy(), abs=1e-10)
    assert (labels.energy.numpy() == system.data.energy[[2, 0]]).all()


def test_neighbour_lists_are_built_once_while_there_is_room(system, monkeypatch):
    assert system.edges(1) is system.edges(1)
    monkeypatch.setattr(module, "MAX_CACHED_EDGES", 0)
    full = System(system.data, 4.0, 2)
    assert full.edges(1) is not full.edges(1)
    assert (full.edges(1).distance == system.edges(1).distance).all()


def test_labels_the_loss_asks_for_must_be_there(tmp_path):
    teacher.write_npy(tmp_path / "data", 2, has_virial=False)
    system = System(read_system(tmp_path / "data", ("O", "H")), 4.0, 2)
    check_labels([system], LossConfig())
    with pytest.raises(DataError, match=r"data has no virial, but the loss asks .* loss\.start_pref_v"):
        check_labels([system], LossConfig(start_pref_v=0.1, limit_pref_v=0.1))


def test_normalisation_is_that_of_all_slots(system):
    """Mean and deviation of R̃ with every empty slot written out as zero, species by species."""
    potential = initial_potential(parse(ModelConfig, teacher.MODEL), [system], [1], 0, "double")
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
        assert dstd[1:] == pytest.approx(np.full(3, np.sqrt(np.mean(np.square(angular)))))


def test_loc_frame_is_normalised_feature_by_feature(system):
    potential = initial_potential(parse(ModelConfig, teacher.LOC_FRAME), [system], [1], 0, "double")
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
    potential = initial_potential(parse(ModelConfig, config), [system], [1], 0, "double")
    assert not potential.descriptor.davg.any()
    assert (potential.descriptor.dstd < 1).all()
