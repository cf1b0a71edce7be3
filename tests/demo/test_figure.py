import numpy as np
import pytest

from dpserver.demo.analysis import analyse, read_distribution, write_distribution
from tests.demo.runs import write_run

figure = pytest.importorskip("dpserver.demo.figure")


@pytest.mark.parametrize("n_steps", [0, 40])
def test_a_picture_is_drawn_from_whole_and_interrupted_runs(tmp_path, n_steps):
    write_run(tmp_path, n_steps)
    results = analyse(tmp_path, 300.0)
    write_distribution(tmp_path / "rdf.csv", results.distribution, "itself")
    for reference in (None, read_distribution(tmp_path / "rdf.csv")):
        figure.draw(results, reference, tmp_path / "water.png", "two waters")
        assert (tmp_path / "water.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([10.0, 30.0, 20.0], [10.0, 30.0, 20.0]),
        ([10.0, 12.0], [6.0, 16.0]),
        ([12.0, 10.0, 50.0], [16.0, 6.0, 50.0]),
        ([0.0, 0.0, 0.0], [-10.0, 0.0, 10.0]),
        ([0.0], [0.0]),
    ],
)
def test_heights_keep_their_distance(heights, expected):
    np.testing.assert_allclose(figure.apart(np.array(heights), 10.0), expected)


def test_names_of_close_lines_do_not_touch():
    drawn = figure.Figure(figsize=(4.0, 2.0), dpi=200)
    axes = drawn.subplots()
    axes.set_ylim(0.0, 100.0)
    labels = [figure._label(axes, text, height, "k") for text, height in (("O  51", 51.0), ("classical  50", 50.0))]
    drawn.draw_without_rendering()
    figure._separate(labels, 72.0 / drawn.dpi)
    upper, lower = (label.get_window_extent() for label in labels)
    assert upper.y0 > lower.y1
