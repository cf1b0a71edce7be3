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
