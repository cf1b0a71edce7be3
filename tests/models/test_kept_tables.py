"""Tables that a model file keeps: used where they are of its weights, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import dpserver
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, ModelFileError
from dpserver.kernels.tables import Tabulation
from dpserver.models import checkpoint, kept_tables
from dpserver.models.potential import Potential
from tests import structures
from tests.cli.commands import exit_code, run
from tests.train import teacher


@pytest.fixture
def model(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "w.pt", teacher.teacher())
    return tmp_path / "w.pt"


@pytest.fixture
def tabulated(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    output = model.with_name("tab.pt")
    run(monkeypatch, "tabulate", model, "-o", output)
    assert "tables deviate by" in capsys.readouterr().err
    return output


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The tolerances of all tables that are made from now on."""
    found: list[float] = []
    cut: Any = Tabulation._cut

    def counted(self: Tabulation, break_at: float | None) -> Any:
        found.append(self._tolerance)
        return cut(self, break_at)

    monkeypatch.setattr(Tabulation, "_cut", counted)
    return found


def test_the_file_evaluates_to_the_same_bits_without_making_tables(
    model: Path, tabulated: Path, made: list[float]
) -> None:
    frames = structures.cubic()
    expected = dpserver.load(model, device="cpu").evaluate(frames)
    assert len(made) == 4
    made.clear()
    found = dpserver.load(tabulated, device="cpu").evaluate(frames)
    assert not made
    np.testing.assert_array_equal(found.forces, expected.forces)
    np.testing.assert_array_equal(found.energy, expected.energy)


@pytest.mark.parametrize(("precision", "table_error"), [("mixed", TABLE_ERROR), ("double", 1e-7)])
def test_tables_for_another_error_are_made_anew(
    tabulated: Path, made: list[float], precision: str, table_error: float
) -> None:
    model = dpserver.load(tabulated, device="cpu", precision=precision, table_error=table_error)
    model.warm_up()
    assert made == [max(table_error, 3e-7 if precision == "mixed" else 0.0)] * 4


def test_tables_of_other_weights_are_not_used(tabulated: Path, made: list[float]) -> None:
    model = dpserver.load(tabulated, device="cpu")
    assert isinstance(model, Potential)
    with torch.no_grad():
        for parameter in model.descriptor.parameters():
            parameter.mul_(1.01)
    frames = structures.cubic()
    np.testing.assert_allclose(model.evaluate(frames).forces, model.reference(frames).forces, atol=1e-7)
    assert made
    assert "tables" not in checkpoint.contents(model)


def test_what_leaves_the_embedding_nets_alone_keeps_the_tables(
    tabulated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "change-bias", tabulated, "-b", "1.0 2.0", "-o", tabulated.with_name("new.pt"))
    capsys.readouterr()
    kept, before = (checkpoint.read(path)["tables"] for path in (tabulated.with_name("new.pt"), tabulated))
    assert kept["fingerprint"] == before["fingerprint"]
    assert torch.equal(kept["pairs"][3]["coefficients"], before["pairs"][3]["coefficients"])


def test_a_committee_keeps_those_of_its_members(
    tabulated: Path, monkeypatch: pytest.MonkeyPatch, made: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tabulated.with_name("other.pt")
    potential = teacher.teacher()
    with torch.no_grad():
        for parameter in potential.fitting.parameters():
            parameter.mul_(1.01)
    checkpoint.save(other, potential)
    both = tabulated.with_name("both.pt")
    run(monkeypatch, "committee", tabulated, other, "-o", both)
    assert ["tables" in member for member in checkpoint.read(both)["members"]] == [True, False]
    run(monkeypatch, "tabulate", both, "-o", both)
    assert "member 2: tables deviate" in capsys.readouterr().err
    made.clear()
    dpserver.load(both, device="cpu").evaluate(structures.cubic())
    assert not made


def test_info_shows_them(tabulated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "info", tabulated)
    assert "kept in the file, made for 1e-10" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def _without(key: str) -> Any:
    return lambda tables: tables["pairs"][2].pop(key)


def _set(key: str, value: Any) -> Any:
    return lambda tables: tables["pairs"][1].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("tolerance"), "its tables are not as dpserver writes them"),
        (lambda t: t.__setitem__("tolerance", float("nan")), "the tolerance of its tables is nan"),
        (lambda t: t["pairs"].pop(), "its tables are not those of 4 pairs of species"),
        (_without("width"), "table 3 of its tables lacks some of end, width"),
        (_set("parts", torch.ones(3)), "table 2 of its tables holds tensors of other types"),
        (
            _set("parts", torch.full((3,), 1 << 40)),
            "table 2 of its tables cuts bins otherwise than into 1, 2, 4, … 4096",
        ),
        (_set("parts", torch.full((4,), 3)), "table 2 of its tables cuts bins otherwise"),
        (_set("parts", torch.full((32,), 2048)), "table 2 of its tables has more than 32768 intervals"),
        (_set("parts", torch.ones(513, dtype=torch.int64)), "table 2 of its tables has 513 bins, expected 1 to 512"),
        (_set("parts", torch.zeros(0, dtype=torch.int64)), "table 2 of its tables has 0 bins"),
        (_set("parts", torch.ones(1, dtype=torch.int64).expand(256)), "table 2 .* say more numbers than they have"),
        (
            _set("coefficients", torch.zeros(1, dtype=torch.float64).expand(1 << 15, 8, 100)),
            "table 2 of its tables holds tensors that say more numbers than they have",
        ),
        (_set("coefficients", torch.zeros(2, 2, dtype=torch.float64).to_sparse()), "say more numbers than they have"),
        (lambda t: t["pairs"].__setitem__(1, t["pairs"][0]), "several of its tables share their coefficients"),
        (
            _set("coefficients", torch.zeros(2, 8, 3, dtype=torch.float64)),
            r"coefficients of shape \(2, 8, 3\), expected",
        ),
        (
            lambda t: t["pairs"][1]["coefficients"].fill_(np.nan),
            "table 2 of its tables holds numbers that make no sense",
        ),
        (_set("width", 1e-9), "table 2 of its tables holds numbers that make no sense"),
        (_set("error", [0.0, 1.0]), "table 2 of its tables holds numbers that make no sense"),
    ],
)
def test_damaged_tables_are_refused_with_one_line(tabulated: Path, change: Any, message: str) -> None:
    values = checkpoint.read(tabulated)
    change(values["tables"])
    checkpoint.write(tabulated, values)
    with pytest.raises(ModelFileError, match=message) as refusal:
        dpserver.load(tabulated, device="cpu")
    assert "\n" not in str(refusal.value)


def test_tables_that_would_fill_the_memory_are_refused(tabulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tables, "_MOST_BYTES", 10_000)
    with pytest.raises(ModelFileError, match="GB are more than a model file keeps"):
        dpserver.load(tabulated, device="cpu")


def test_tables_with_another_fingerprint_are_made_anew_with_a_warning(
    tabulated: Path, made: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    values = checkpoint.read(tabulated)
    values["tables"]["fingerprint"] = "0" * 64
    checkpoint.write(tabulated, values)
    model = dpserver.load(tabulated, device="cpu")
    assert "the tables in the model file were made from other weights, and are made anew" in caplog.text
    model.warm_up()
    assert len(made) == 4
    values["tables"]["pairs"][1]["coefficients"][0, 0, 0] = np.nan
    checkpoint.write(tabulated, values)
    with pytest.raises(ModelFileError, match="numbers that make no sense"):
        dpserver.load(tabulated, device="cpu")


def test_options_that_change_no_table_keep_them(
    tabulated: Path, made: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    values = checkpoint.read(tabulated)
    values["config"]["model"]["descriptor"] |= {"seed": 7, "trainable": False}
    checkpoint.write(tabulated, values)
    dpserver.load(tabulated, device="cpu").warm_up()
    assert not made
    values["config"]["model"]["descriptor"]["activation_function"] = "gelu"
    checkpoint.write(tabulated, values)
    dpserver.load(tabulated, device="cpu").warm_up()
    assert made
    assert "made from other weights" in caplog.text


@pytest.mark.parametrize("value", [0.0, -1e-9, 0.1, float("nan")])
def test_an_error_that_makes_no_sense_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    message = f"must be positive and at most 0.001, a part of the forces; got {value:g}"
    with pytest.raises(ConfigError, match=message):
        dpserver.load(model, device="cpu", table_error=value)
    assert exit_code(monkeypatch, "tabulate", model, "-o", model.with_name("x.pt"), "--table-error", value) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "command", [("bench",), ("test",), ("serve", "--unix", "nobody", "--once", "--control", "off", "--model")]
)
def test_commands_hand_the_error_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DPSERVER_TABLE_ERROR", "0.1")
    assert exit_code(monkeypatch, *command, model) == 2
    assert "must be positive and at most 0.001" in " ".join(capsys.readouterr().err.split())


def test_the_calculator_of_ase_hands_the_error_on(model: Path, made: list[float]) -> None:
    pytest.importorskip("ase")
    from dpserver.ase import DPCalculator

    DPCalculator(model, device="cpu", table_error=1e-8).potential.warm_up()
    assert made == [1e-8] * 4


def test_a_model_without_tables_is_told_apart() -> None:
    from tests.cli.test_info import LOCAL_FRAME

    potential = Potential(dpserver.models.config.parse(dpserver.models.config.ModelConfig, LOCAL_FRAME))
    with pytest.raises(ConfigError, match="a model with the descriptor loc_frame is evaluated without tables"):
        kept_tables.make(potential, TABLE_ERROR)


@pytest.mark.parametrize("name", ["w.pt", "committee.pt"])
def test_a_shipped_model_is_read_with_its_tables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shipped, output = Path(__file__).parents[2] / "examples" / "water" / name, tmp_path / "with.pt"
    run(monkeypatch, "tabulate", shipped, "-o", output)
    frames = structures.cubic()
    bare, kept = (dpserver.load(path, device="cpu").evaluate(frames) for path in (shipped, output))
    assert (bare.forces == kept.forces).all()
    assert "anew" not in caplog.text
