"""The parts: their models, paths and inputs, without running them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ase.io
import numpy as np
import pytest

import dpserver
from benchmarks.science import __main__ as program
from benchmarks.science import common, dynamics, long_range, presentation, quantum, smoothness, spce, water
from benchmarks.science.__main__ import PARTS, module_of, parser
from benchmarks.science.analysis import nearest_images
from benchmarks.science.common import RESULTS, Experiment, MissingData, Refused, load_records
from benchmarks.science.presentation import QUICK
from dpserver.errors import ConfigError, DPServerError
from dpserver.frames import Frames


def test_a_harmonic_model_is_harmonic_in_all_directions(tmp_path: Path) -> None:
    model = dpserver.load(quantum.harmonic_model(tmp_path / "h.pt", 3500.0))
    quantum.oscillators(tmp_path / "h.xyz", 3500.0, seed=1)
    atoms = ase.io.read(tmp_path / "h.xyz")
    types = np.array([["Zn", "H"].index(s) for s in atoms.symbols])
    result = model.evaluate(Frames.single(atoms.positions, types, atoms.cell.array))
    n = int((types == 1).sum())
    middle = 0.5 * (atoms.positions[:n] + atoms.positions[n : 2 * n])
    x = atoms.positions[2 * n :] - middle
    k = quantum.spring_constant(3500.0, 1.008)
    np.testing.assert_allclose(result.forces[2 * n :], -k * x, atol=1e-6)
    assert result.energy[0] == pytest.approx(0.5 * k * (x**2).sum(), abs=1e-6)


def test_a_spring_has_its_frequency() -> None:
    # H2: 4401 1/cm and a reduced mass of 0.504 u make 35.9 eV/Å².
    assert quantum.spring_constant(4401.2, 0.50391) == pytest.approx(35.9, rel=2e-3)


def test_what_is_left_of_a_smooth_energy_and_of_a_jump() -> None:
    x = np.linspace(0.0, 0.1, 60)[:, None]
    energy = np.sin(x[:, 0]) + np.where(x[:, 0] > 0.05, 0.2, 0.0)
    left = smoothness.left_over(energy, -np.cos(x), x)
    assert left.argmax() == np.searchsorted(x[:, 0], 0.05) - 1
    assert left.max() == pytest.approx(0.2)
    assert np.sort(np.abs(left))[-2] < 1e-9


@pytest.mark.parametrize("kind", smoothness.EVENTS)
def test_an_event_is_alone_on_its_path(kind: str) -> None:
    frame, reach = smoothness.start(), 2e-4
    event = smoothness.find_event(frame, kind, np.random.default_rng(5), reach)
    states = []
    for t in (-reach, reach):
        positions = frame.positions.copy()
        positions[event.atom] = event.position + t * event.direction
        delta = nearest_images(positions - positions[event.centre], frame.cell[0])
        states.append(np.linalg.norm(delta, axis=1))
    same = (frame.types == frame.types[event.atom]) & (np.arange(frame.n_atoms) != event.centre)
    before, after = (np.flatnonzero(same)[np.argsort(d[same])] for d in states)
    is_near = [d[event.atom] < 6.0 for d in states]
    if kind == "cutoff":
        assert is_near == [True, False]
    else:
        moved = np.flatnonzero(before != after)
        assert len(moved) == 2
        assert event.atom in before[moved]
        n_axes = 1 + smoothness._last_axis(frame.types, event.centre, event.atom)
        assert (moved[0] < n_axes) == (kind == "axes")


def test_the_input_of_ipi_is_what_was_asked_for(tmp_path: Path) -> None:
    plan = dynamics.Dynamics(tmp_path / "x.xyz", 1000, beads=4, masses=(1.0, 2.0), transport="shm", offset=-3.5)
    root = ElementTree.fromstring(dynamics.input_of(plan, "here"))
    socket = root.find("ffsocket")
    assert socket is not None
    assert socket.get("mode") == "shm"
    assert (socket.findtext("address") or "").strip() == "here"
    assert float(socket.findtext("batch_size") or 0) == 4
    assert float(socket.findtext("offset") or 0) == -3.5
    assert root.find("system/motion/dynamics/thermostat").get("mode") == "pile_g"  # type: ignore[union-attr]
    plain = ElementTree.fromstring(dynamics.input_of(dynamics.Dynamics(tmp_path / "x.xyz", 10, ensemble="nve"), "here"))
    assert plain.find("system/motion/dynamics/thermostat") is None
    assert plain.find("ffsocket/batch_size") is None


def test_steps_done_twice_count_once(tmp_path: Path) -> None:
    assert dynamics.read_table(tmp_path) is None
    text = "# column 1 --> step\n# column 2 --> conserved{electronvolt} : something\n"
    (tmp_path / "simulation.out").write_text(text + " 0 1.0\n 1 2.0\n 2 3.0\n 1 4.0\n 2 5.0\n 3 6", encoding="utf-8")
    found = dynamics.read_table(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found["step"], [0, 1, 2])
    np.testing.assert_array_equal(found["conserved"], [1, 4, 5])


def test_a_run_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    plan = dynamics.Dynamics(tmp_path / "x.xyz", 10)
    assert dynamics._start(tmp_path, plan, "first") == "input.xml"
    chk = tmp_path / "simulation.chk"
    chk.write_text("<simulation>\n<address>first</address>\n</simulation>\n", encoding="utf-8")
    assert dynamics._start(tmp_path, plan, "second") == "continue.xml"
    assert "<address> second </address>" in (tmp_path / "continue.xml").read_text(encoding="utf-8")
    chk.write_text("<simulation>\n<address>first</address>\n", encoding="utf-8")
    assert dynamics._start(tmp_path, plan, "third") == "input.xml"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_what_a_part_has(part: str, tmp_path: Path) -> None:
    module = module_of(part)
    options = parser(part).parse_args([part, "--quick"])
    assert options.quick
    # Nothing measured, and what the results hold.
    for found in ({}, load_records(PARTS[part])):
        with presentation.images_in(tmp_path):
            assert isinstance(module.page(found), str)
        assert all(claim.text and claim.result for claim in module.claims(found))


@pytest.mark.parametrize("part", ["smoothness", "linear-cost", "long-range", "quantum"])
def test_the_results_are_those_of_the_default_options(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the model that is shipped. The other parts, and loc_frame, need data that are not there."""
    monkeypatch.setenv("DPSERVER_SHARED", str(tmp_path))
    known, asked = load_records(PARTS[part]), []

    def measure(_: Experiment, name: str, settings: dict[str, Any], compute: object) -> dict[str, Any]:
        asked.append(name)
        assert known[name]["settings"] == json.loads(json.dumps(settings)), name
        return known[name]

    monkeypatch.setattr(Experiment, "measure", measure)
    module_of(part).run(Experiment(PARTS[part]), parser(part).parse_args([part]))
    assert {name for name in known if "loc_frame" not in name} == set(asked)


def some_records(part: str, is_quick: bool) -> dict[str, dict[str, Any]]:
    """Records of a part from which each of its claims that can be judged is."""

    def one(settings: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        return {"settings": settings or {}, "is_quick": is_quick, **values}

    curves = {f"g_{pair}": [1.0] * 100 for pair in ("OO", "OH", "HH")}
    trained = {"force_rmse": 40.0, "energy_rmse": 1.0, "n_training_frames": 320}
    virial = {"radius": [9.0, 10.0], "rms_teacher_mev": [5.0, 5.0], "b2_teacher_cm3": [-100.0]}
    kinetic = {"kinetic_H_mev": 40.0, "kinetic_H_error": 0.1}
    return {
        "water": {
            **{f"{d}_{way}": one({"steps": 10}, **trained)
               for d in ("loc_frame", "se_e2_a") for way in ("adam", "peer")},
            "loc_frame_soap_long": one({"steps": 20}, **trained),
            "shipped": one({}, **trained),
            "reference": one(halves=[curves, curves], **curves),
            "liquid_330": one(**curves),
        },
        "molecules": {f"{m}_{k}": one(frames=500, force_mae=30.0)
                      for m in ("ethanol", "3bpa") for k in ("se_e2_a", "gdml")},
        "smoothness": {
            **{f"events_{d}": one(**{k: {"jumps_mev": [1e-8]} for k in smoothness.EVENTS})
               for d in ("se_e2_a", "loc_frame")},
            **{f"nve_se_e2_a_double_{dt}": one({"timestep_fs": dt, "length_ps": 25.0}, drift_mev_per_atom_ns=0.01,
                                               drift_standard_error=0.01, fluctuation_mev_per_atom=dt**2)
               for dt in smoothness.TIMESTEPS},
        },
        "linear_cost": {f"double_{n:02}": one({"n_atoms": 192 * n**3, "threads": 1}, seconds_reused=1e-3 * n**3,
                                              seconds_renewed=2e-3 * n**3) for n in (1, 5, 10)},
        "long_range": {
            "pairs_short_range": one(rms_error_mev=[5.0, 5.0], b2_model_cm3=[-50.0], **virial),
            "pairs_charges": one(rms_error_mev=[0.1, 0.1], b2_model_cm3=[-99.0], **virial),
            **{f"liquid_{n}": one(bin=0.05, length_ps=10.0, halves=[curves, curves], **curves)
               for n in ("teacher", "short_range", "charges")},
            "cost": one(sizes=[{"n_atoms": 12288, "ratio": 1.5}]),
        },
        "quantum": {
            "oscillator_04": one({"beads": 4}, kinetic_mev=46.605, kinetic_error=0.1, exact_mev=46.675),
            "water_08": one({"beads": 8}, **kinetic),
            "ways": one({"steps": 200}, differences=[{"position_angstrom": 0.0, "are_files_equal": True}]),
        },
    }[part]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_judged_by_a_quick_run(part: str) -> None:
    module, name = module_of(part), PARTS[part]
    judged = [claim.is_reached for claim in module.claims(some_records(name, is_quick=False))]
    assert any(verdict is not None for verdict in judged)
    claims = module.claims(some_records(name, is_quick=True))
    assert len(claims) == len(judged)
    assert all(claim.is_reached is None for claim in claims)
    assert all(QUICK in claim.difference for claim in claims)


def test_one_bead_has_no_error_to_be_judged_by() -> None:
    # Its estimator is the same in every step; what differs is rounding and a constant of another year.
    found = some_records("quantum", is_quick=False)
    one_bead = {
        **found["oscillator_04"],
        "settings": {"beads": 1},
        "kinetic_mev": 12.926013,
        "kinetic_error": 5.9e-16,
        "exact_mev": 12.925996,
    }
    claim = quantum.claims({**found, "oscillator_01": one_bead})[0]
    assert claim.is_reached
    assert claim.result == "P = 1, 4: within 0.15 %, at most 0.7 standard errors"
    alone = quantum.claims({"oscillator_01": one_bead})[0]
    assert alone.is_reached is None
    assert alone.result == "P = 1: within 0.00 %"


def test_a_drift_beyond_its_limit_is_said_to_be() -> None:
    found = some_records("smoothness", is_quick=False)
    run = found["nve_se_e2_a_double_0.25"]

    def verdict(drift: float, error: float) -> bool | None:
        values = {**run, "drift_mev_per_atom_ns": drift, "drift_standard_error": error}
        (claim,) = (c for c in smoothness.claims({**found, "nve_se_e2_a_double_0.25": values}) if "drifts by" in c.text)
        return claim.is_reached

    assert verdict(-0.05, 0.01) is True
    assert verdict(0.05, 0.07) is None
    assert verdict(0.2, 0.07) is None
    assert verdict(-0.4, 0.07) is False


@pytest.mark.parametrize("part", PARTS)
def test_models_that_no_daemon_has_answered_for_are_named(part: str) -> None:
    module = module_of(part)
    assert module.answered({})
    assert not any(module.answered({}).values())


class Process:
    """A child that has left with a status, or runs on for some looks at it."""

    def __init__(self, returncode: int | None, looks: int = 0) -> None:
        self.returncode, self.looks = returncode, looks

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else self.returncode

    def wait(self, _: float) -> int | None:
        return self.returncode


def test_a_daemon_that_has_left_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamics, "_POLL", 0.0)
    (tmp_path / "dpserver.log").write_text("told to leave\n", encoding="utf-8")
    plan = dynamics.Dynamics(tmp_path / "x.xyz", 10)

    def follow(ipi: Process, engine: Process) -> None:
        dynamics._follow(tmp_path, plan, ipi, engine)  # type: ignore[arg-type]

    follow(Process(0, looks=3), Process(0))  # i-PI has its last words
    with pytest.raises(DPServerError, match="status 3: told to leave"):
        follow(Process(0, looks=3), Process(3))
    monkeypatch.setattr(dynamics, "_LEAVING", -1.0)
    with pytest.raises(DPServerError, match="status 0: told to leave"):
        follow(Process(0, looks=3), Process(0))


OVERLAP = "12:00 WARNING unix:/a: refused: atoms 7 and 9 are 0.04 Å apart: they overlap; served 1 evaluation, mean 4 ms"
BUG = "12:00 WARNING unix:/a: refused: internal error: KeyError('x'); served 9 evaluations, mean 4 ms"


def ended(folder: Path, log: str, steps: str) -> DPServerError:
    """How a run ends whose daemon has left with such a log."""
    folder.mkdir()
    (folder / "dpserver.log").write_text(log + "\n12:00 WARNING unix:/a #2: refused: more\n", encoding="utf-8")
    text = "# column 1 --> step\n# column 2 --> time{picosecond} : something\n"
    (folder / "simulation.out").write_text(text + steps, encoding="utf-8")
    plan = dynamics.Dynamics(folder / "x.xyz", 10)
    with pytest.raises(DPServerError) as caught:
        dynamics._follow(folder, plan, Process(0, looks=3), Process(4))  # type: ignore[arg-type]
    return caught.value


def test_a_dynamics_that_comes_to_overlapping_atoms_is_a_result(tmp_path: Path) -> None:
    error = ended(tmp_path / "a", OVERLAP, " 0 0.0\n 4 2.5\n")
    assert isinstance(error, Refused)
    reason = "atoms 7 and 9 are 0.04 Å apart: they overlap"
    assert error.to_record() == {"refused_after_ps": 2.5, "reason": reason}


@pytest.mark.parametrize(("log", "steps"), [(BUG, " 0 0.0\n 4 2.5\n"), (OVERLAP, " 0 0.0\n"), (OVERLAP, "")])
def test_a_mistake_of_ours_or_of_the_start_is_none(tmp_path: Path, log: str, steps: str) -> None:
    assert not isinstance(ended(tmp_path / "a", log, steps), Refused)


def test_a_run_whose_length_is_no_multiple_of_the_stride_is_complete(tmp_path: Path) -> None:
    text = "# column 1 --> step\n# column 2 --> conserved{electronvolt} : something\n"
    (tmp_path / "simulation.out").write_text(text + " 0 1.0\n 4 2.0\n 8 3.0\n", encoding="utf-8")
    plan = dynamics.Dynamics(tmp_path / "x.xyz", 10, stride=4)
    np.testing.assert_array_equal(dynamics.run(tmp_path, tmp_path / "w.pt", plan)["step"], [0, 4, 8])


def test_long_range_makes_what_its_records_have_come_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(folder: Path, config: dict[str, Any], _: int) -> Path:
        assert Path(config["training"]["training_data"]["systems"][0]).parent.joinpath("made").exists()
        (folder / "w.pt").write_text("a model", encoding="utf-8")
        return folder / "w.pt"

    monkeypatch.setattr(long_range, "make_frames", lambda folder, _: (folder / "made").touch())
    monkeypatch.setattr(common, "train", train)
    experiment = Experiment("long_range", place=tmp_path)
    work = long_range.Work(experiment, {"seed": 1, "frames": 4}, 100, 1)
    assert work.model("charges").read_text(encoding="utf-8") == "a model"
    work.model("charges").write_text("the same", encoding="utf-8")
    assert work.model("charges").read_text(encoding="utf-8") == "the same"
    other = long_range.Work(experiment, {"seed": 2, "frames": 4}, 100, 1)
    assert other.model("charges").read_text(encoding="utf-8") == "a model"
    assert work.settings("charges")["model"]["electrostatics"]["charges"] == spce.CHARGES


def test_smoothness_leaves_loc_frame_out_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPSERVER_SHARED", str(tmp_path))
    names: list[str] = []
    monkeypatch.setattr(Experiment, "measure", lambda _, name, *__: names.append(name))
    options = parser("smoothness").parse_args(["smoothness"])
    smoothness.run(Experiment("smoothness", place=tmp_path), options)
    assert len(names) == 2 + len(smoothness.LENGTHS) * len(smoothness.TIMESTEPS)
    assert all("se_e2_a" in name for name in names)
    assert capsys.readouterr().out.count("loc_frame is left out") == 1
    with pytest.raises(MissingData):
        water.rough_model(Experiment("smoothness", place=tmp_path), 10)


def test_a_model_trained_with_other_settings_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(folder: Path, config: dict[str, Any], _: int | None = None) -> Path:
        (folder / "w.pt").write_text(str(config["training"]["numb_steps"]), encoding="utf-8")
        return folder / "w.pt"

    (tmp_path / "data" / "water").mkdir(parents=True)
    monkeypatch.setenv("DPSERVER_SHARED", str(tmp_path))
    monkeypatch.setattr(common, "train", train)
    monkeypatch.setattr(water, "training", lambda folder, config, *_: {"model": train(folder, config)})
    asking = Experiment("smoothness", place=tmp_path)
    ten = water.rough_model(asking, 10)
    assert ten == tmp_path / "water" / "loc_frame_soap_long" / "w.pt"
    assert water.rough_model(asking, 20) == tmp_path / "smoothness" / "model_loc_frame" / "w.pt"
    assert ten.read_text(encoding="utf-8") == "10"
    assert water.rough_model(asking, 10) == ten


def test_results_are_small_and_whole() -> None:
    for path in RESULTS.glob("*.json"):
        assert path.stat().st_size < 400_000, path.name
        records = json.loads(path.read_text(encoding="utf-8")).values()
        assert all("settings" in record and not record["is_quick"] for record in records)


class Fragile:
    """Parts of which one fails in a way nobody has thought of."""

    __doc__ = "Something."

    def __init__(self, part: str) -> None:
        self.part = part

    def add_options(self, _: argparse.ArgumentParser) -> None:
        pass

    def run(self, experiment: Experiment, _: argparse.Namespace) -> None:
        assert experiment.is_quick
        if self.part == "water":
            raise ZeroDivisionError
        if self.part == "quantum":
            raise ConfigError("no i-PI")


def test_one_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished: list[str] = []
    monkeypatch.setattr(program, "module_of", Fragile)
    monkeypatch.setattr(Experiment, "finish", lambda self: finished.append(self.part))
    assert program.run_all(argparse.Namespace(quick=True, again=False)) == ["water", "quantum"]
    said = capsys.readouterr().out
    assert finished == ["molecules", "smoothness", "linear_cost", "long_range"]
    assert "ZeroDivisionError" in said
    assert "quantum: no i-PI" in said


class Measured(Fragile):
    """A part that measures one thing and draws a figure."""

    TITLE = "Measured"

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.__name__ = f"benchmarks.science.{part}"

    def run(self, experiment: Experiment, _: argparse.Namespace) -> None:
        experiment.measure("a", {"seed": 1}, lambda _: {"value": 1})

    def page(self, found: dict[str, common.Record]) -> str:
        presentation.save_figure(presentation.new_figure()[0], "measured")
        return f"{len(found)} measured"

    def answered(self, _: dict[str, common.Record]) -> dict[str, str]:
        return {}

    def claims(self, _: dict[str, common.Record]) -> list[presentation.Claim]:
        return []


def test_a_quick_run_has_results_and_pages_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(program, "module_of", Measured)
    monkeypatch.setattr(program, "PARTS", {"measured": "measured"})
    for module in (program, common):
        monkeypatch.setattr(module, "QUICK_RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["science", "measured", "--quick"])
    assert program.main() == 0
    assert (tmp_path / "docs" / "science" / "measured.md").read_text(encoding="utf-8").endswith("1 measured\n")
    assert (tmp_path / "docs" / "images" / "science" / "measured.png").exists()
    assert load_records("measured", tmp_path / "results")["a"]["is_quick"]
    assert str(tmp_path / "docs" / "science") in capsys.readouterr().out
    others = (presentation.PAGES / "measured.md", presentation.IMAGES / "measured.png", RESULTS / "measured.json")
    assert not any(path.exists() for path in others)
