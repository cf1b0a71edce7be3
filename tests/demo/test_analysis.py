import numpy as np
import pytest

from dpserver.demo.analysis import (
    Average,
    analyse,
    block_average,
    distribution,
    read_distribution,
    write_distribution,
)
from dpserver.demo.rdf import shell_volumes
from dpserver.errors import DataError
from tests.demo.runs import write_run


def test_numbers_of_a_run(tmp_path):
    write_run(tmp_path)
    results = analyse(tmp_path, 300.0)
    assert results.n_beads == 2
    assert results.counts == {"O": 2, "H": 4}
    assert results.settled == pytest.approx(0.005)
    np.testing.assert_allclose(results.conserved[[0, -1]], [0.0, 1.0], atol=1e-9)
    averages = {name: average.mean for name, average in results.kinetic_average.items()}
    assert averages == pytest.approx({"all": 120.0, "O": 60.0, "H": 150.0})
    assert results.classical == pytest.approx(38.7780, abs=1e-4)
    assert results.temperature.mean == pytest.approx(300.0, abs=0.1)


def test_bonds_of_the_beads_are_counted(tmp_path):
    write_run(tmp_path)
    curves = analyse(tmp_path, 300.0).distribution
    assert list(curves.g) == ["OO", "OH", "HH"]
    is_bond = curves.edges[1:] < 1.3
    neighbours = curves.g["OH"] * shell_volumes(curves.edges) * 4 / 7.0**3
    assert neighbours[is_bond].sum() == pytest.approx(2.0)


def test_an_interrupted_run_still_gives_results(tmp_path):
    write_run(tmp_path, n_steps=0)
    results = analyse(tmp_path, 300.0)
    assert len(results.time) == 1
    assert np.isnan(results.temperature.error)


def test_a_run_without_a_step_is_refused(tmp_path):
    write_run(tmp_path)
    header = [line for line in (tmp_path / "simulation.out").read_text().splitlines() if line.startswith("#")]
    (tmp_path / "simulation.out").write_text("\n".join([*header, ""]))
    with pytest.raises(DataError, match="no complete step"):
        analyse(tmp_path, 300.0)


def test_oxygen_comes_before_hydrogen_whatever_the_order_of_atoms():
    positions = np.random.default_rng(0).uniform(0, 6, (2, 4, 3))
    cells = np.broadcast_to(6.0 * np.eye(3), (2, 3, 3))
    assert list(distribution(positions, cells, ("H", "O", "H", "O")).g) == ["OO", "OH", "HH"]
    assert list(distribution(positions, cells, ("Na", "Cl", "Na", "Cl")).g) == ["NaNa", "NaCl", "ClCl"]


def test_error_of_the_mean_is_that_of_independent_blocks():
    noise = np.random.default_rng(0).normal(10.0, 1.0, 10_000)
    average = block_average(noise, n_blocks=50)
    assert average.mean == pytest.approx(10.0, abs=0.05)
    assert average.error == pytest.approx(0.01, rel=0.4)
    assert str(Average(10.04, 0.06)) == "10.0 ± 0.1"
    assert str(Average(10.04, float("nan"))) == "10.0"


def test_a_table_comes_back(tmp_path):
    write_run(tmp_path)
    curves = analyse(tmp_path, 300.0).distribution
    write_distribution(tmp_path / "rdf.csv", curves, "two waters")
    again = read_distribution(tmp_path / "rdf.csv")
    np.testing.assert_allclose(again.edges, curves.edges, atol=1e-12)
    for pair, g in curves.g.items():
        np.testing.assert_allclose(again.g[pair], g, atol=5.1e-5)


@pytest.mark.parametrize("text", ["", "x,g_OO\n0.01,1\n", "r,OO\n0.01,1\n", "r,g_OO\n0.5,1\n1.5,1\n"])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "rdf.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rdf\.csv"):
        read_distribution(path)
