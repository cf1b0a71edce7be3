from __future__ import annotations

import pytest

from dpserver.monitor.figures import Totals, compare, short


def test_figures_are_differences_over_time():
    before = Totals(time=10.0, batches=5, frames=40, atoms=400, evaluating=1.0, computing=2.0, wire=3.0, waiting=5.0)
    after = Totals(time=20.0, batches=25, frames=340, atoms=6400, evaluating=4.0, computing=6.0, wire=4.0, waiting=10.0)
    figures = compare(before, after, 32)
    assert figures.as_dict() == pytest.approx(
        {
            "seconds": 10.0, "batches_per_second": 2.0, "mean_batch": 15.0, "largest_batch": 32,
            "evaluations_per_second": 30.0, "us_per_atom": 500.0, "computing": 0.4, "wire": 0.1, "waiting": 0.5,
        }
    )  # fmt: skip
    assert str(figures) == (
        "2 batches/s of 15 structures, 32 at most; 30 evaluations/s, 500 µs/atom; "
        "time: 50% waiting for the peer, 40% computing, 10% on the wire"
    )


def test_nothing_happened():
    totals = Totals(time=10.0)
    figures = compare(totals, Totals(time=20.0, waiting=10.0), 0)
    assert (figures.mean_batch, figures.us_per_atom, figures.batches_per_second, figures.waiting) == (0, 0, 0, 1)
    assert compare(totals, totals, 0).batches_per_second == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (9.876, "9.88"), (999.4, "999"), (999.7, "1,000"), (12345.6, "12,346")]
)
def test_short_numbers(value, text):
    assert short(value) == text
