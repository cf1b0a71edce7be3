"""What the pictures share: the check of the format, and the ticks of logarithmic axes."""

from __future__ import annotations

import pytest

from dpserver.errors import ConfigError
from dpserver.train.figure import check_format, power_of_ten, tick_log

figure = pytest.importorskip("matplotlib.figure")


def test_formats() -> None:
    for name in ("a.png", "a.pdf", "a.svg"):
        check_format(name)
    for name in ("a.bmp", "a"):
        with pytest.raises(ConfigError, match=rf"cannot draw {name}: expected a name that ends in one of .*\.png"):
            check_format(name)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2000.0, ["1", "10", "100", "1000"]),
        (7.0, 120.0, ["10", "20", "50", "100"]),
        (180.0, 800.0, ["200", "300", "500", "700"]),
        (25.0, 130.0, ["30", "50", "70", "100"]),
        (740.0, 860.0, ["750", "780", "810", "840"]),
        (1e-12, 1.0, [f"$10^{{{k}}}$" for k in range(-12, 1, 2)]),
        (5e-9, 2e-3, [f"$10^{{{k}}}$" for k in range(-8, -2)]),
        (2e-5, 6e-4, [r"$2\cdot10^{-5}$", r"$5\cdot10^{-5}$", "$10^{-4}$", r"$2\cdot10^{-4}$", r"$5\cdot10^{-4}$"]),
    ],
)
def test_ticks_are_few_and_plain(low: float, high: float, expected: list[str]) -> None:
    axes = figure.Figure().subplots()
    axes.set(yscale="log", ylim=(low, high))
    tick_log(axes.yaxis)
    axes.figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_yticklabels()] == expected
    assert not axes.get_yticks(minor=True).size


def test_powers_of_ten() -> None:
    assert [power_of_ten(v) for v in (1e-3, 2e-8, 1.5e6)] == ["$10^{-3}$", r"$2\cdot10^{-8}$", r"$1.5\cdot10^{6}$"]
