import numpy as np
import pytest

from dpserver.demo.trajectory import read_properties, read_trajectory
from dpserver.errors import DataError

TABLE = """\
# column   1     --> step : The current simulation time step.
# column   2     --> conserved{electronvolt} : The value of the conserved energy quantity per bead.
# column   3     --> kinetic_cv{electronvolt}(O) : The centroid-virial quantum kinetic energy.
  0.00000000e+00   -2.5e+01   1.5e+00
  1.00000000e+00   -2.4e+01   1.6e+00
"""


def frame(step: int, cell: str = "10.0 10.0 10.0 90.0 90.0 90.0") -> str:
    comment = f"# CELL(abcABC): {cell}  Step: {step}  Bead: 0 positions{{angstrom}}  cell{{angstrom}}"
    return f"2\n{comment}\n  O  {step}.5  0.0e+00 -1.0\n  H  1.0  2.0  3.0\n"


def test_columns_by_name_without_units(tmp_path):
    path = tmp_path / "out"
    path.write_text(TABLE)
    table = read_properties(path)
    assert list(table) == ["step", "conserved", "kinetic_cv(O)"]
    np.testing.assert_array_equal(table["conserved"], [-25.0, -24.0])


def test_an_unfinished_line_is_left_out(tmp_path):
    path = tmp_path / "out"
    for unfinished in ("  2.0000", "  2.00000000e+00   -2.4e+01   1.6"):
        path.write_text(TABLE + unfinished)
        np.testing.assert_array_equal(read_properties(path)["step"], [0.0, 1.0])


def test_a_header_alone_has_no_rows(tmp_path):
    path = tmp_path / "out"
    path.write_text("".join(TABLE.splitlines(keepends=True)[:3]))
    assert read_properties(path)["step"].shape == (0,)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "out"
    path.write_text("1 2 3\n")
    with pytest.raises(DataError, match="has no '# column' header"):
        read_properties(path)


def test_frames_and_every_nth(tmp_path):
    path = tmp_path / "pos.xyz"
    path.write_text("".join(frame(k) for k in range(5)))
    whole = read_trajectory(path)
    assert whole.symbols == ("O", "H")
    np.testing.assert_array_equal(whole.positions[:, 0, 0], [0.5, 1.5, 2.5, 3.5, 4.5])
    np.testing.assert_allclose(whole.cells[0], 10.0 * np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(read_trajectory(path, every=2).positions[:, 0, 0], [0.5, 2.5, 4.5])


def test_an_unfinished_frame_is_left_out_wherever_it_ends(tmp_path):
    path = tmp_path / "pos.xyz"
    for end in range(1, len(frame(1))):
        path.write_text(frame(0) + frame(1)[:end])
        assert len(read_trajectory(path).positions) == 1


def test_skewed_cell_has_its_lengths_and_angles(tmp_path):
    path = tmp_path / "pos.xyz"
    path.write_text(frame(0, "7.0 8.0 9.0 80.0 95.0 110.0"))
    cell = read_trajectory(path).cells[0]
    lengths = np.linalg.norm(cell, axis=1)
    np.testing.assert_allclose(lengths, [7.0, 8.0, 9.0])
    cosines = [cell[1] @ cell[2] / 72, cell[0] @ cell[2] / 63, cell[0] @ cell[1] / 56]
    np.testing.assert_allclose(np.degrees(np.arccos(cosines)), [80.0, 95.0, 110.0])


@pytest.mark.parametrize(("text", "message"), [("", "no complete frame"), (frame(0).replace("abcABC", "H"), "CELL")])
def test_what_is_not_a_trajectory_is_refused(tmp_path, text, message):
    path = tmp_path / "pos.xyz"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trajectory(path)
