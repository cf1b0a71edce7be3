"""Tables of pair energies: the files, their continuation, the cubics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import ConfigError
from dpserver.models.splines import coefficients_of, continued, read_table, values_of
from tests.models import tables


def at(coefficients: np.ndarray, r: float, rmin: float, step: float) -> float:
    piece = int((r - rmin) / step)
    u = (r - rmin) / step - piece
    return float(np.polyval(coefficients[piece], u))


def test_cubics_are_the_clamped_spline() -> None:
    table = tables.repulsion()
    found = coefficients_of(table, 2)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for r in np.random.default_rng(1).uniform(0.1, 2.99, size=12):
            expected = tables.spline(table, tables.column_of(a, b, 2), float(r), 9.0)
            assert at(found[a, b], float(r), 0.1, tables.STEP) == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_cubics_agree_in_value_and_slope_where_they_meet_and_are_flat_at_both_ends() -> None:
    pieces = coefficients_of(tables.repulsion(1), 1)[0, 0]
    ends = pieces.sum(axis=1)
    slopes = pieces @ [3, 2, 1, 0]
    curvatures = pieces @ [6, 2, 0, 0]
    np.testing.assert_allclose(ends[:-1], pieces[1:, 3], rtol=1e-12)
    np.testing.assert_allclose(slopes[:-1], pieces[1:, 2], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curvatures[:-1], 2 * pieces[1:, 1], rtol=1e-7, atol=1e-10)
    assert pieces[0, 2] == 0
    assert slopes[-1] == pytest.approx(0, abs=1e-13)


def test_the_table_comes_back() -> None:
    table = tables.repulsion(3)
    np.testing.assert_allclose(values_of(coefficients_of(table, 3), 0.1, tables.STEP), table, rtol=1e-13, atol=1e-14)


def test_two_rows_are_enough() -> None:
    pieces = coefficients_of(np.array([[1.0, 4.0], [1.5, 2.0]]), 1)
    np.testing.assert_allclose(pieces[0, 0], [[4.0, -6.0, 0.0, 4.0]], atol=1e-15)


SHORT = np.array([[0.005, 1.0, 2.0, 3.0], [0.01, 0.8, 1.6, 2.4], [0.015, 0.5, 1.0, 1.5]])


def test_zeros_go_on_as_zeros() -> None:
    table = SHORT.copy()
    table[-1, 1:] = 0
    longer = continued(table, 0.022)
    np.testing.assert_allclose(longer[:, 0], [0.005, 0.01, 0.015, 0.02, 0.025], rtol=1e-14)
    np.testing.assert_array_equal(longer[3:, 1:], 0)


def test_a_table_that_is_long_enough_stays() -> None:
    assert continued(SHORT, 0.015) is SHORT
    assert continued(SHORT, 0.012) is SHORT


@pytest.mark.parametrize(("rcut", "n_more", "end"), [(0.019, 1, 0.02), (0.024, 1, 0.02), (0.031, 3, 0.03)])
def test_others_go_to_zero_by_one_cubic(rcut: float, n_more: int, end: float) -> None:
    longer = continued(SHORT, rcut)
    assert len(longer) == len(SHORT) + n_more
    np.testing.assert_allclose(longer[-1, 1:], 0, atol=1e-15)
    assert longer[-1, 0] == pytest.approx(end)
    if n_more > 1:
        width, slope = end - 0.015, np.array([-0.3, -0.6, -0.9])
        u = 0.005 / width
        expected = SHORT[-1, 1:] * (1 - 3 * u**2 + 2 * u**3) + slope * width * (u - 2 * u**2 + u**3)
        np.testing.assert_allclose(longer[3, 1:], expected, rtol=1e-12)


def test_read(tmp_path: Path) -> None:
    table = tables.repulsion()
    np.testing.assert_array_equal(read_table(tables.write(tmp_path / "t.tab", table), 2, 2.5), table)
    assert len(read_table(tmp_path / "t.tab", 2, 4.0)) > len(table)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is no table of pair energies"),
        ("r e e e\n", "is no table of pair energies"),
        ("0.1 1 2\n0.2 1 2\n", "has 3 columns and 2 rows; expected 4 columns"),
        ("0.1 1 2 3\n", "has 4 columns and 1 rows; expected"),
        ("0.1 1 2 3\n0.2 1 2\n", "is no table of pair energies"),
        ("0.1 1 2 3\n0.2 1 2 3\n0.5 1 2 3\n", "must ascend in even steps"),
        ("0.2 1 2 3\n0.1 1 2 3\n", "must ascend in even steps"),
        ("-0.1 1 2 3\n0.1 1 2 3\n", "must ascend in even steps from 0"),
        ("0.1 1 2 nan\n0.2 1 2 3\n", "must ascend in even steps"),
    ],
)
def test_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "t.tab").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read_table(tmp_path / "t.tab", 2, 4.0)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the table of pair energies .*t\.tab"):
        read_table(tmp_path / "t.tab", 2, 4.0)
