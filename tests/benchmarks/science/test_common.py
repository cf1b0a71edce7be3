"""Records: what is measured once, what again, and how numbers are written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.science import common, pages, presentation
from benchmarks.science.common import Experiment, MissingData, Refused, identity, is_refused, load_records
from benchmarks.science.presentation import Claim
from dpserver.errors import ConfigError


def experiment(tmp_path: Path, **options: bool) -> Experiment:
    return Experiment("part", **options, place=tmp_path)


class Counted:
    """A measurement that counts how often it was made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "left").write_text("something", encoding="utf-8")
        return {"value": np.float64(0.5), "curve": np.array([1.0, 1 / 3])}


def test_measured_once_for_the_same_settings(tmp_path: Path) -> None:
    one, compute = experiment(tmp_path), Counted()
    first = one.measure("a", {"seed": 1, "steps": (1, 2)}, compute)
    assert one.measure("a", {"seed": 1, "steps": [1, 2]}, compute) == first
    assert compute.calls == 1
    one.measure("a", {"seed": 2}, compute)
    experiment(tmp_path, is_again=True).measure("a", {"seed": 2}, compute)
    assert compute.calls == 3
    record = load_records("part", tmp_path / "results")["a"]
    assert record["settings"] == {"seed": 2}
    assert record["value"] == 0.5
    assert record["curve"] == [1.0, 0.3333333]
    assert {"seconds", "date", "machine", "versions", "is_quick"} <= set(record)


def test_a_refused_dynamics_is_measured_once_and_told(tmp_path: Path) -> None:
    def falls(_: Path) -> dict[str, Any]:
        raise Refused(2.5, "atoms 7 and 9 are 0.04 Å apart")

    some, again, part = Experiment("some_part", place=tmp_path), Counted(), Part()
    record = some.measure("falls", {"seed": 1}, falls)
    assert is_refused(record)
    assert some.measure("falls", {"seed": 1}, again) == record
    assert again.calls == 0
    pages.write({"some-part": part}, tmp_path / "docs", some.results)
    assert part.found == {}
    for name in ("index.md", "some_part.md"):
        told = (tmp_path / "docs" / name).read_text(encoding="utf-8")
        assert "`falls` after 2.50 ps (atoms 7 and 9 are 0.04 Å apart)." in told


def test_what_was_interrupted_finds_what_it_left(tmp_path: Path) -> None:
    one, found = experiment(tmp_path), []

    def compute(folder: Path) -> dict[str, Any]:
        found.append((folder / "left").exists())
        (folder / "left").write_text("something", encoding="utf-8")
        if len(found) == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        one.measure("a", {"seed": 1}, compute)
    one.measure("a", {"seed": 1}, compute)
    one.measure("a", {"seed": 2}, compute)
    assert found == [False, True, False]


def test_an_interrupted_again_goes_on_where_it_was(tmp_path: Path) -> None:
    first, found = Counted(), []
    for name in ("a", "b"):
        experiment(tmp_path).measure(name, {"seed": 1}, first)

    def compute(folder: Path) -> dict[str, Any]:
        found.append((folder / "left").exists())
        (folder / "left").write_text("something", encoding="utf-8")
        if len(found) == 1:
            raise KeyboardInterrupt
        return {"value": 2}

    again = experiment(tmp_path, is_again=True)
    again.measure("a", {"seed": 1}, first)
    with pytest.raises(KeyboardInterrupt):
        again.measure("b", {"seed": 1}, compute)
    assert load_records("part", tmp_path / "results")["b"]["value"] == 0.5
    # the same command: what was done is done, what was begun goes on
    again.measure("a", {"seed": 1}, first)
    again.measure("b", {"seed": 1}, compute)
    assert first.calls == 3
    assert found == [False, True]
    assert load_records("part", tmp_path / "results")["b"]["value"] == 2
    # it has come to its end: the next one begins anew
    again.finish()
    again.measure("b", {"seed": 1}, compute)
    assert found == [False, True, False]


def test_a_folder_of_other_settings_is_emptied(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    folder = one.ready("a", {"seed": (1, 2)})
    (folder / "left").write_text("something", encoding="utf-8")
    assert not one.is_taken("a", {"seed": [1, 2]})
    assert (one.ready("a", {"seed": [1, 2]}) / "left").exists()
    assert one.is_taken("a", {"seed": [3]})
    assert not (one.ready("a", {"seed": [3]}) / "left").exists()
    one.measure("b", {"seed": 1}, Counted())
    shutil.rmtree(one.folder_of("b"))
    assert one.is_taken("b", {"seed": 2})
    assert not one.is_taken("b", {"seed": 1})


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.pt: there is no such model file"):
        identity(tmp_path / "nope.pt")


class Stubborn:
    """A process that Ctrl-C does not end."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def wait(self, timeout: float | None = None) -> int:
        if not self.heard:
            raise KeyboardInterrupt
        if timeout is not None:
            raise subprocess.TimeoutExpired("it", timeout)
        return -9

    def send_signal(self, _: int) -> None:
        self.heard.append("asked")

    def kill(self) -> None:
        self.heard.append("killed")


def test_an_interruption_stays_one_where_a_training_does_not_leave() -> None:
    process = Stubborn()
    with pytest.raises(KeyboardInterrupt):
        common._wait(process)  # type: ignore[arg-type]
    assert process.heard == ["asked", "killed"]


def test_data_lie_in_the_folder_of_the_science(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPSERVER_SHARED", raising=False)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    with pytest.raises(MissingData, match="science/data/water"):
        common.data("water")
    (tmp_path / "science" / "data" / "water").mkdir(parents=True)
    assert common.data("water") == tmp_path / "science" / "data" / "water"


def test_missing_data_say_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSERVER_SHARED", str(tmp_path))
    with pytest.raises(ConfigError, match=r"examples/water/data.*DPSERVER_SHARED"):
        common.data("water")


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (3.5985, 1.2, "3.6 ± 1.2"),
        (110.3, 0.51, "110.30 ± 0.51"),
        (12.926, 1e-16, "12.9"),
        (2.6e-7, None, "2.60·10⁻⁷"),
        (-0.0, None, "0"),
        (40.44, None, "40.4"),
        (123456.0, None, "1.23·10⁵"),
        (None, None, "–"),
        (float("nan"), 1.0, "–"),
    ],
)
def test_numbers(value: float | None, error: float | None, expected: str) -> None:
    assert presentation.number(value, 3, error) == expected


def test_table() -> None:
    assert presentation.table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"
    assert presentation.table(("a", "b"), []) == ""
    assert presentation.table(("|a|",), [("b",)]).startswith("| \\|a\\| |\n")


def test_learning_curve(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    path.write_text("# step rmse_val lr\n# nan where\n 1 2.0 1e-3\n 10 1.0 1e-4\n 20 0.", encoding="utf-8")
    found = common.read_lcurve(path)
    np.testing.assert_array_equal(found["step"], [1, 10])
    np.testing.assert_array_equal(found["rmse_val"], [2.0, 1.0])


def test_systems_are_read_over_sets(tmp_path: Path) -> None:
    (tmp_path / "type.raw").write_text("0\n1\n", encoding="utf-8")
    (tmp_path / "type_map.raw").write_text("O\nH\n", encoding="utf-8")
    for k, n in enumerate((2, 1)):
        folder = tmp_path / f"set.{k:03}"
        folder.mkdir()
        for name, width in (("coord", 6), ("box", 9), ("energy", 1), ("force", 6)):
            np.save(folder / f"{name}.npy", np.full((n, width), float(k), dtype=np.float32))
    system = common.read_system(tmp_path)
    assert system.symbols == ("O", "H")
    assert system.positions.shape == system.forces.shape == (3, 2, 3)
    np.testing.assert_array_equal(system.energy, [0, 0, 1])


class Part:
    """A module of a part, as `pages` sees it."""

    TITLE = "Some part"
    __name__ = "benchmarks.science.some_part"

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def page(self, found: dict[str, Any]) -> str:
        self.found = found
        return "What was found."

    def answered(self, found: dict[str, Any]) -> dict[str, str]:
        return {"one model": "3 frames", "another": ""}

    def claims(self, found: dict[str, Any]) -> list[Claim]:
        return [Claim("it holds", "1", "less data", True), Claim("it does not", "2", is_reached=False)]


def test_pages(tmp_path: Path) -> None:
    (tmp_path / "some_part.json").write_text(json.dumps({"a": {"value": 1}}), encoding="utf-8")
    part = Part()
    pages.write({"some-part": part}, tmp_path / "docs", tmp_path)
    index = (tmp_path / "docs" / "index.md").read_text(encoding="utf-8")
    assert part.found == {"a": {"value": 1}}
    assert "| it holds | 1 | yes | less data |" in index
    assert "**not reached**" in index
    assert "make science-some-part" in index
    page = (tmp_path / "docs" / "some_part.md").read_text(encoding="utf-8")
    assert "What was found." in page
    for text in (index, page):
        assert "[`benchmarks/science/some_part.py`](../../benchmarks/science/some_part.py)" in text
        assert "(../../benchmarks/results/science/some_part.json)" in text
        assert "Answered by the daemon: one model – 3 frames. Not yet through the daemon: **another**." in text
