"""Tables of functions whose derivatives are known."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.frames import Floats
from dpserver.kernels.tables import Table, Tabulation

FREQUENCIES = np.array([0.5, 1.0, 2.0, 3.0])
END = 3.7


def waves(s: Floats, order: int) -> list[Floats]:
    """sin(k s + k), its derivatives, and each wave twice in other proportions: eight channels, of which four differ."""
    found = []
    for m in range(order + 1):
        basis = FREQUENCIES**m * np.sin(FREQUENCIES * (s[:, None] + 1) + m * np.pi / 2)
        found.append(np.concatenate([basis, basis @ [[1, 2, 0, 0], [0, 1, 0, 1], [1, 0, -1, 0], [0, 0, 3, 1]]], axis=1))
    return found


def step(s: Floats, order: int) -> list[Floats]:
    """A sharp step near the beginning of the range: tanh(200 (s - 0.2))."""
    y = np.tanh(200 * (s - 0.2))[:, None]
    d = 1 - y * y
    found = [y, 200 * d, -2 * 200**2 * y * d, 200**3 * d * (6 * y * y - 2)]
    return found[: order + 1]


def errors(table: Table, mix: Floats | None) -> tuple[float, float]:
    """Largest deviation of the value, and of the difference quotient that the table itself gives."""
    s = np.random.default_rng(0).uniform(0, END, 5000)
    h = 1e-4

    def value(at: Floats) -> Floats:
        columns = table.columns(at)
        return columns if mix is None else columns @ mix

    inside = s[(s > 2 * h) & (s < END - 2 * h)]
    slope = (value(inside - 2 * h) - 8 * value(inside - h) + 8 * value(inside + h) - value(inside + 2 * h)) / (12 * h)
    return np.abs(value(s) - waves(s, 0)[0]).max(), np.abs(slope - waves(inside, 1)[1]).max()


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_values_and_derivatives(tolerance: float) -> None:
    table = Tabulation(waves, END, tolerance).table()
    assert table.mix is None
    assert table.coefficients.shape[1:] == (8, 8)
    value, slope = errors(table, None)
    assert value <= 4 * tolerance
    assert slope <= 10 * tolerance + 1e-10
    assert max(table.error.value, table.error.first) <= tolerance
    assert table.error.first < table.error.second < 1e3 * table.error.first


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_as_many_columns_as_channels_differ(tolerance: float) -> None:
    table = Tabulation(waves, END, tolerance).compressed(np.linspace(0, END, 300))
    assert table is not None
    assert table.mix is not None
    assert table.mix.shape == (4, 8)
    assert table.coefficients.shape[2] == 4
    value, slope = errors(table, table.mix)
    assert value <= 4 * tolerance
    assert slope <= 10 * tolerance + 1e-10
    assert np.abs(table.columns(np.linspace(0, END, 999))).max() <= 1.01


def test_nothing_is_gained_where_all_channels_differ() -> None:
    def four(s: Floats, order: int) -> list[Floats]:
        return [d[:, :4] for d in waves(s, order)]

    assert Tabulation(four, END, 1e-9).compressed(np.linspace(0, END, 300)) is None


def test_intervals_are_fine_where_the_function_is_sharp() -> None:
    table = Tabulation(step, END, 1e-8).table()
    assert max(table.error.value, table.error.first) <= 1e-8
    sharp = int(0.2 / table.width)
    assert table.parts[sharp] >= 4
    assert np.all(table.parts[sharp + 3 :] == 1)
    assert len(table.coefficients) == table.parts.sum()
    s = np.linspace(0, END, 4001)
    np.testing.assert_allclose(table.columns(s), step(s, 0)[0], rtol=0, atol=1e-8)


def test_smooth_at_the_knots() -> None:
    """Values and three derivatives are shared by the polynomials on both sides."""
    table = Tabulation(step, END, 1e-8).table()
    widths = np.repeat(table.width / table.parts, table.parts)
    powers = np.arange(8)
    for order in range(4):
        factors = np.array([np.prod(p - np.arange(order)) if p >= order else 0 for p in powers])
        right = (table.coefficients[:, :, 0] @ factors) / widths**order
        left = table.coefficients[:, order, 0] * factors[order] / widths**order
        scale = 200.0**order
        np.testing.assert_allclose(right[:-1] / scale, left[1:] / scale, rtol=0, atol=1e-7)


def test_a_kink_is_beyond_tables_and_costs_no_time() -> None:
    def kink(s: Floats, order: int) -> list[Floats]:
        found = [np.maximum(s - 1.234, 0)[:, None], (s > 1.234)[:, None].astype(float)]
        return [*found, *[np.zeros((len(s), 1))] * 2][: order + 1]

    table = Tabulation(kink, END, 1e-9).table()
    assert table.error.first > 0.1
    assert len(table.coefficients) < 20_000


def bent(s: Floats, order: int) -> list[Floats]:
    """sin(s) and, beyond a third of the way, (s - END/3)³ with it: the third derivative jumps."""
    beyond = (s > END / 3)[:, None] * (s[:, None] - END / 3)
    added = [beyond**3, 3 * beyond**2, 6 * beyond, 6.0 * (beyond > 0)]
    return [np.sin(s + m * np.pi / 2)[:, None] + added[m] for m in range(order + 1)]


def test_a_jump_of_the_third_derivative_is_where_intervals_meet() -> None:
    known = Tabulation(bent, END, 1e-10, END / 3).table()
    assert max(known.error.value, known.error.first) <= 1e-10
    assert known.parts.max() == 1
    assert np.min(np.abs(known.width * np.arange(len(known.parts)) - END / 3)) < 1e-12
    assert len(known.parts) * known.width >= END
    s = np.linspace(0, END, 4001)
    np.testing.assert_allclose(known.columns(s), bent(s, 0)[0], rtol=0, atol=1e-9)
    unknown = Tabulation(bent, END, 1e-10).table()
    assert unknown.parts.max() > 64
    beyond = Tabulation(bent, END, 1e-10, 2 * END).table()
    assert beyond.width == pytest.approx(unknown.width)
