from __future__ import annotations

from dpserver.monitor.histogram import FRAMES, SECONDS, Histogram


def test_a_value_at_a_bound_belongs_below_it():
    histogram = Histogram([1.0, 2.0, 4.0])
    for value in (0.5, 1.0, 1.5, 4.0, 4.5, 100.0):
        histogram.observe(value)
    assert histogram.snapshot() == {"bounds": [1.0, 2.0, 4.0], "counts": [2, 1, 1, 2], "count": 6, "sum": 111.5}


def test_a_snapshot_does_not_change():
    histogram = Histogram([1.0])
    before = histogram.snapshot()
    histogram.observe(0.0)
    assert before["counts"] == [0, 0]


def test_bounds_ascend():
    for bounds in (FRAMES, SECONDS):
        assert sorted(set(bounds)) == list(bounds)
