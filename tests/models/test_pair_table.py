"""Tables of pair energies beside a net, switched or summed, and alone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.splines import coefficients_of
from tests import structures
from tests.contract import PotentialContract, scaled
from tests.models import tables
from tests.models.test_se_e2_a import every_cell

RCUT = 4.0
SWITCH = {"smin_alpha": 0.15, "sw_rmin": 0.7, "sw_rmax": 1.6}
DESCRIPTOR = {"type": "se_e2_a", "sel": [20, 40], "rcut": RCUT, "neuron": [4, 8], "axis_neuron": 3}


def shape(table: Floats, **entries: Any) -> dict[str, Any]:
    return {
        "rmin": table[0, 0],
        "step": table[1, 0] - table[0, 0],
        "n_splines": len(table) - 1,
        "rcut": RCUT,
        **entries,
    }


def filled(potential: Potential, table: Floats) -> Potential:
    assert potential.table is not None
    potential.table.fill(table, coefficients_of(table, 2))
    return potential


def make(table: Floats | None = None, entries: dict[str, Any] | None = None, **model: Any) -> Potential:
    """A small model of water with random weights and a table that is as strong as the net."""
    table = tables.repulsion() if table is None else table
    section = {
        "type_map": ["O", "H"],
        "descriptor": DESCRIPTOR,
        "fitting_net": {"neuron": [10, 10]},
        "pair_table": shape(table, **(entries or {})),
        **({} if (entries or {}).get("weights") else SWITCH),
        **model,
    }
    potential = filled(Potential(parse(ModelConfig, section), seed=51), table)
    if section["descriptor"]["type"] != "none":
        potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
        potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
        scaled(potential, every_cell())
    return potential


def alone(**entries: Any) -> Potential:
    descriptor = {"type": "none", "rcut": RCUT}
    potential = make(entries=entries, descriptor=descriptor, sw_rmin=None, sw_rmax=None)
    potential.energy_bias.copy_(torch.tensor([-7.0, 3.0]))
    return potential


class Contract(PotentialContract):
    def frames(self) -> Frames:
        return every_cell()


class TestSwitched(Contract):
    def potential(self) -> Potential:
        return make()


class TestSwitchedAsThePyTorchBackend(Contract):
    model: ClassVar = {"pair_exclude_types": [[0, 1]], "sw_rmin": 0.9, "sw_rmax": 2.4, "smin_alpha": 0.2}

    def potential(self) -> Potential:
        return make(entries={"softmin_floor": 1e-20}, **self.model)


class TestSummed(Contract):
    def potential(self) -> Potential:
        return make(entries={"weights": (0.5, 0.5)})


class TestLongerThanTheNet(Contract):
    def potential(self) -> Potential:
        descriptor = {**DESCRIPTOR, "rcut": 3.0}
        return make(entries={"weights": (1.0, 1.0)}, descriptor=descriptor)


class TestAlone(Contract):
    def potential(self) -> Potential:
        return alone()

    def test_loss_gradient_by_every_weight(self) -> None:
        """There are no weights."""
        assert not list(self.potential().parameters())

    def test_float32(self) -> None:  # type: ignore[override]
        """So there are none to round."""
        potential, frames = self.potential(), self.frames()
        exact = potential.evaluate(frames)
        potential.set_precision("single")
        np.testing.assert_array_equal(potential.evaluate(frames).forces, exact.forces)


# --- what it is ------------------------------------------------------------------------------------------------------


def net_alone(potential: Potential) -> Potential:
    """The same net without a table."""
    left_out = {"pair_table": None, "sw_rmin": None, "sw_rmax": None}
    net = Potential(potential.config.model_copy(update=left_out))
    net.load_state_dict({k: v for k, v in potential.state_dict().items() if not k.startswith("table.")})
    return net


@pytest.mark.parametrize("floor", [0.0, 1e-20])
@pytest.mark.parametrize("has_bias", [True, False])
def test_energies_by_their_definition(floor: float, has_bias: bool) -> None:
    potential = make(entries={"softmin_floor": floor}, srtab_add_bias=has_bias)
    assert potential.table is not None
    potential.table.bias.copy_(torch.tensor([0.3, -0.2], dtype=torch.float64))
    net, bias = net_alone(potential), potential.energy_bias.numpy()
    for frame in (structures.tiny(), structures.cluster(), structures.molecule(), structures.atom()):
        w = tables.weights(frame, RCUT, 0.15, 0.7, 1.6, floor)
        table = tables.energies(frame, tables.repulsion(), RCUT) + np.array([0.3, -0.2])[frame.types]
        table += bias[frame.types] if has_bias else 0
        expected = (1 - w) * net.evaluate(frame).atom_energy + w * table
        np.testing.assert_allclose(potential.evaluate(frame).atom_energy, expected, rtol=1e-11, atol=1e-12)
        if frame.n_atoms > 2:
            assert ((w > 0.05) & (w < 0.95)).any()


def test_a_sum_by_its_definition() -> None:
    potential = make(entries={"weights": (0.5, 2.0)})
    bias = potential.energy_bias.numpy()
    for frame in (structures.tiny(), structures.cluster(), structures.atom(1)):
        net = net_alone(potential).evaluate(frame).atom_energy - bias[frame.types]
        expected = 0.5 * net + 2.0 * tables.energies(frame, tables.repulsion(), RCUT) + bias[frame.types]
        np.testing.assert_allclose(potential.evaluate(frame).atom_energy, expected, rtol=1e-11, atol=1e-12)


def test_alone_it_is_the_table() -> None:
    potential = alone()
    for frame in (structures.tiny(), structures.cluster()):
        expected = tables.energies(frame, tables.repulsion(), RCUT) + np.array([-7.0, 3.0])[frame.types]
        np.testing.assert_allclose(potential.evaluate(frame).atom_energy, expected, rtol=1e-11, atol=1e-12)


def pair(distance: float) -> Frames:
    return Frames.single([[0, 0, 0], [0, 0, distance]], [0, 1])


def test_no_energy_from_the_cutoff_on() -> None:
    """As in DeePMD-kit without any smoothing: a table that does not end with 0 jumps."""
    table = tables.repulsion(rmax=5.0)
    table[:, 1:] += 1.0
    potential = filled(Potential(parse(ModelConfig, {
        "type_map": ["O", "H"],
        "descriptor": {"type": "none", "rcut": RCUT},
        "pair_table": shape(table),
    })), table)  # fmt: skip
    assert float(potential.evaluate(pair(RCUT - 1e-9)).energy[0]) == pytest.approx(1.0, abs=0.05)
    assert float(potential.evaluate(pair(RCUT)).energy[0]) == 0


def test_far_neighbours_switch_to_the_net_unless_a_floor_says_otherwise() -> None:
    """With DeePMD-kit's floor the mean of distances beyond 46 smin_alpha falls to 0."""
    sharp = {"smin_alpha": 0.05}
    exact, floored = make(**sharp), make(entries={"softmin_floor": 1e-20}, **sharp)
    floored.load_state_dict(exact.state_dict())
    far = pair(3.9)
    expected = net_alone(exact).evaluate(far).energy[0]
    assert exact.evaluate(far).energy[0] == pytest.approx(expected, abs=1e-12)
    bias = float(floored.energy_bias.sum())
    assert floored.evaluate(far).energy[0] == pytest.approx(bias, abs=1e-12)
    assert np.isfinite(exact.evaluate(far).forces).all()


def test_closer_than_the_table() -> None:
    table = tables.repulsion(rmin=0.6)
    with pytest.raises(StructureError, match=r"atoms are 0\.5500 Å apart, but the table .* begins at 0\.6 Å"):
        make(table).evaluate(pair(0.55))


def test_more_neighbours_than_sel() -> None:
    with pytest.raises(StructureError, match=r"an atom has \d+ neighbours within 4\.0 Å, .* at most 7 \(sel\)"):
        alone(sel=7).evaluate(structures.cubic())


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"sw_rmax": None}, r"use_srtab: needs sw_rmin and sw_rmax beside it"),
        ({"sw_rmin": 1.7}, r"sw_rmin: must be smaller than sw_rmax = 1\.6, got 1\.7"),
        ({"pair_table": None}, r"sw_rmin: has a meaning with a table only, use_srtab"),
        ({"pair_table": None, "descriptor": {"type": "none", "rcut": 4.0}}, "descriptor: a model needs a descriptor"),
        ({"fitting_net": {"type": "dipole"}}, "use_srtab: a table of energies goes with a fitting net of energies"),
    ],
)
def test_refused(entries: dict[str, Any], expected: str) -> None:
    section = {
        "type_map": ["O", "H"],
        "descriptor": DESCRIPTOR,
        "pair_table": shape(tables.repulsion()),
        **SWITCH,
        **entries,
    }
    with pytest.raises(ConfigError, match=expected):
        parse(ModelConfig, section)


def test_a_file_is_no_table_yet() -> None:
    section = {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, "use_srtab": "zbl.tab", **SWITCH}
    with pytest.raises(ConfigError, match=r"use_srtab is the file zbl\.tab; a model needs the table"):
        Potential(parse(ModelConfig, section))
