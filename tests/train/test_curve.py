"""The learning curve: DeePMD-kit's columns, restart, reading and drawing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import ConfigError, DataError
from dpserver.train.curve import LearningCurve, plot, read, running_median

TRAIN = {"total": 3.0, "e": 0.25, "f": 1.5}
VALIDATION = {"total": 4.0, "e": 0.5, "f": 2.0}

# What DeePMD-kit 3 writes: two comments, widths of 11, two decimals.
DEEPMD = """# step         rmse_val    rmse_trn    rmse_e_val  rmse_e_trn    rmse_f_val  rmse_f_trn         lr
# If there is no available reference data, rmse_*_{val,trn} will print nan
      1      2.57e+01    2.58e+01      7.56e-01    7.56e-01      8.12e-01    8.16e-01    1.0e-03
    100           nan    1.93e+01      1.02e-01    1.01e-01      6.02e-01    6.12e-01    1.0e-03
"""


def test_columns_are_deepmd_kits(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    curve = LearningCurve(path, ("f", "e", "total", "v"))
    curve.write(100, 1e-3, TRAIN, VALIDATION)
    header, note, line = path.read_text().splitlines()
    terms = "rmse_val rmse_trn rmse_e_val rmse_e_trn rmse_f_val rmse_f_trn rmse_v_val rmse_v_trn"
    assert " ".join(header.split()) == f"# step {terms} lr"
    assert note.startswith("#")
    assert [float(w) for w in line.split()[:7]] == [100, 4.0, 3.0, 0.5, 0.25, 2.0, 1.5]
    assert line.split()[7:9] == ["nan", "nan"]
    assert np.isfinite(np.genfromtxt(path, names=True)["rmse_f_val"])


def test_without_validation_there_are_columns_of_training_only(tmp_path: Path) -> None:
    curve = LearningCurve(tmp_path / "lcurve.out", has_validation=False)
    curve.write(1, 1e-3, TRAIN)
    found = read(tmp_path / "lcurve.out")
    assert list(found) == ["step", "rmse_trn", "rmse_e_trn", "rmse_f_trn", "lr"]
    assert found["rmse_e_trn"] == 0.25


def test_validation_may_be_missing_from_a_line(tmp_path: Path) -> None:
    curve = LearningCurve(tmp_path / "lcurve.out")
    curve.write(1, 1e-3, TRAIN)
    assert math.isnan(read(tmp_path / "lcurve.out")["rmse_val"][0])


def test_a_new_training_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sub/lcurve.out"
    LearningCurve(path).write(1, 1e-3, TRAIN, VALIDATION)
    LearningCurve(path)
    assert len(read(path)["step"]) == 0


def test_restart_continues_the_same_file(tmp_path: Path) -> None:
    def write(curve: LearningCurve, steps: range) -> None:
        for step in steps:
            curve.write(step, 1e-3 * 0.9**step, {t: v / step for t, v in TRAIN.items()}, VALIDATION)

    write(LearningCurve(tmp_path / "whole"), range(1, 9))
    write(LearningCurve(tmp_path / "parts"), range(1, 7))
    with (tmp_path / "parts").open("a") as stream:
        stream.write("      7    1.0e+00")
    write(LearningCurve(tmp_path / "parts", restart_step=4), range(5, 9))
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]


def test_restart_without_a_file_starts_one(tmp_path: Path) -> None:
    LearningCurve(tmp_path / "lcurve.out", restart_step=10).write(11, 1e-3, TRAIN, VALIDATION)
    assert read(tmp_path / "lcurve.out")["step"].tolist() == [11]


def test_restart_refuses_a_file_with_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    LearningCurve(path, ("total", "f"))
    with pytest.raises(DataError, match="has the columns step rmse_val"):
        LearningCurve(path, restart_step=0)


def test_reads_deepmd_kits_own(tmp_path: Path) -> None:
    path = tmp_path / "lcurve.out"
    path.write_text(DEEPMD)
    found = read(path)
    assert " ".join(found) == "step rmse_val rmse_trn rmse_e_val rmse_e_trn rmse_f_val rmse_f_trn lr"
    np.testing.assert_array_equal(found["step"], [1, 100])
    np.testing.assert_array_equal(found["rmse_f_trn"], [0.816, 0.612])
    assert math.isnan(found["rmse_val"][1])


@pytest.mark.parametrize("text", ["", "1 2 3\n", "# time e\n1 2\n", "# step rmse_trn lr\n1 2\n", "# step lr\n1 a\n"])
def test_what_is_no_curve(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lcurve.out"
    path.write_text(text)
    with pytest.raises(DataError, match="is not a learning curve"):
        read(path)


def test_missing_curve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the learning curve"):
        read(tmp_path / "lcurve.out")


def test_running_median() -> None:
    values = np.array([5.0, 1.0, 9.0, 2.0, 2.0, 8.0, 3.0])
    np.testing.assert_array_equal(running_median(values, 3), [5.0, 5.0, 2.0, 2.0, 2.0, 3.0, 5.5])
    np.testing.assert_array_equal(running_median(values), values)


@pytest.mark.parametrize("terms", [("total", "e", "f"), ("total", "e", "f", "v")])
def test_picture(tmp_path: Path, terms: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    curve = LearningCurve(tmp_path / "lcurve.out", terms)
    for step in range(1, 60):
        errors = dict.fromkeys(terms, 1.0 / step)
        curve.write(step, 1e-3 * 0.9**step, errors, errors if step % 2 else None)
    plot(tmp_path / "lcurve.out", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_learning_rate_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    curve = LearningCurve(tmp_path / "lcurve.out")
    for step in range(1, 60):
        curve.write(step, 1e-3 * 0.9**step, TRAIN, VALIDATION)
    plot(tmp_path / "lcurve.out", tmp_path / "curve.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["Energy", "Force", "Learning rate"]


def test_picture_of_a_single_line_and_of_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = LearningCurve(tmp_path / "lcurve.out", has_validation=False)
    with pytest.raises(DataError, match="has no line yet"):
        plot(tmp_path / "lcurve.out", tmp_path / "curve.png")
    curve.write(1, 1e-3, TRAIN)
    plot(tmp_path / "lcurve.out", tmp_path / "curve.png")


def test_picture_of_unknown_format(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    LearningCurve(tmp_path / "lcurve.out").write(1, 1e-3, TRAIN, VALIDATION)
    with pytest.raises(ConfigError, match=r"cannot draw .*curve\.doc: expected a name that ends in one of"):
        plot(tmp_path / "lcurve.out", tmp_path / "curve.doc")
