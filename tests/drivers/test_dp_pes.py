"""The PES file of i-PI's custom driver: units, conventions, batches, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ipi")

from ipi.pes import load_pes, scan_pes_file
from ipi.utils.io.inputs import read_args_kwargs

from dpserver.errors import ConfigError, ModelFileError, StructureError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.potential import Potential
from dpserver.units import BOHR, HARTREE
from tests import structures
from tests.models import committees
from tests.models.test_se_e2_a import make

PES = Path(__file__).resolve().parents[2] / "drivers" / "ipi" / "dp_pes.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    checkpoint.save(path, make())
    return path


@pytest.fixture(scope="module")
def potential(model: Path) -> Potential:
    return checkpoint.load(model)


def driver(options: str):
    """What `i-pi-driver-py -m custom -P dp_pes.py -o options` makes."""
    args, kwargs = read_args_kwargs(options)
    return load_pes("custom", str(PES))(*args, **kwargs)


def on_the_wire(frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Cell with vectors as columns and positions, in Bohr."""
    return frames.cell[0].T / BOHR, frames.positions / BOHR


def test_is_found_without_being_run() -> None:
    assert scan_pes_file(str(PES)) == ("DeepPotential", "dp")


@pytest.mark.parametrize("name", ["cubic", "triclinic", "slab", "molecule"])
def test_one_structure(model: Path, potential: Potential, name: str) -> None:
    frames = getattr(structures, name)()
    expected = potential.evaluate(frames)
    energy, forces, virial, extra = driver(f"model={model}, species=O H H")(*on_the_wire(frames))
    assert energy * HARTREE == pytest.approx(expected.energy[0], rel=1e-12)
    np.testing.assert_allclose(forces * HARTREE / BOHR, expected.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(virial * HARTREE, expected.virial[0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(virial, virial.T)
    assert extra == ""


def test_virial_is_minus_the_derivative_by_strain(model: Path) -> None:
    pes, step = driver(f"model={model}, species=O H H"), 1e-5
    frames = structures.triclinic()
    _, _, virial, _ = pes(*on_the_wire(frames))
    for i, j in ((0, 0), (1, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            energies.append(pes(*on_the_wire(structures.strained(frames, strain)))[0])
        assert virial[i, j] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), rel=1e-5)


def test_batch_is_one_evaluation(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pes = driver(f"model={model}, species=O H H, precision=double")
    batch = [structures.water((2, 2, 2), shear, seed=k) for k, shear in enumerate((None, structures.SHEAR, None))]
    sizes = []
    evaluate = Potential.evaluate
    monkeypatch.setattr(Potential, "evaluate", lambda self, f: sizes.append(f.n_frames) or evaluate(self, f))
    cells, positions = zip(*(on_the_wire(frames) for frames in batch), strict=True)
    together = pes(list(cells), list(positions))
    assert sizes == [3]
    for answer, cell, x in zip(together, cells, positions, strict=True):
        alone = pes(cell, x)
        assert answer[0] == pytest.approx(alone[0], rel=1e-12)
        np.testing.assert_allclose(answer[1], alone[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(answer[2], alone[2], rtol=0, atol=1e-12)


def test_a_committee_adds_what_its_members_say(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "1.pt", committees.member(1))
    checkpoint.save(tmp_path / "2.pt", committees.member(2))
    checkpoint.write(tmp_path / "w.pt", checkpoint.join([tmp_path / "1.pt", tmp_path / "2.pt"]))
    cell, x = on_the_wire(structures.cubic())
    answers = driver(f"model={tmp_path / 'w.pt'}, species=O H H")([cell, cell], [x, x])
    energies = [
        member.evaluate(structures.cubic()).energy[0] / HARTREE for member in checkpoint.load(tmp_path / "w.pt").members
    ]
    for energy, _, _, extra in answers:
        found = json.loads(extra)
        np.testing.assert_allclose(found["committee_pot"], energies, rtol=1e-12)
        assert energy == pytest.approx(np.mean(found["committee_pot"]), rel=1e-12)


def test_template_gives_the_order(model: Path, tmp_path: Path) -> None:
    template = tmp_path / "order.xyz"
    template.write_text("3\n\nH 0 0 0\nO 0 0 1\nH 0 0 2\n", encoding="utf-8")
    frames = structures.cubic()
    order = np.arange(frames.n_atoms).reshape(-1, 3)[:, [1, 0, 2]].ravel()
    cell, positions = on_the_wire(frames)
    energy = driver(f"model={model},species=O H H")(cell, positions)[0]
    assert driver(f"model={model},template={template}")(cell, positions[order])[0] == pytest.approx(energy, rel=1e-12)


def test_an_option_that_nobody_knows_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"option 'templte' of dp_pes is unknown; did you mean template\?"):
        driver(f"model={model},templte=water.xyz")
    with pytest.raises(ConfigError, match="option 'x' of dp_pes is unknown; known are model, template, species"):
        driver(f"model={model},x=1")
    with pytest.raises(ConfigError, match=r"no model is given; write -o model=w\.pt,template=water\.xyz"):
        driver("species=O H H")
    assert driver(f"model={model},verbose=True,verbosity=3").verbose is True


def test_refusals(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        driver(f"model={tmp_path}/none.pt")
    with pytest.raises(ConfigError, match="is no file"):
        driver(f"model={model}, template={tmp_path}/none.xyz")
    with pytest.raises(ConfigError, match="both a template and species"):
        driver(f"model={model}, template=water.xyz, species=O H H")
    pes = driver(f"model={model}, species=O H H")
    cell, positions = on_the_wire(structures.cubic())
    with pytest.raises(StructureError, match="whole multiple"):
        pes(cell, positions[:-1])
    bad = positions.copy()
    bad[5] = np.nan
    with pytest.raises(StructureError, match="atom 5 is not finite"):
        pes(cell, bad)
    with pytest.raises(StructureError, match="nothing says which atom is which"):
        driver(f"model={model}")(cell, positions)
