"""Real i-PI, served with the input file of DeePMD-kit's own driver."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.units import BOHR, HARTREE
from tests import structures
from tests.integration.ipi_runs import cell_bohr, energies, finish, free_endpoint, ipi, place, start, write_input
from tests.integration.processes import daemon, save_model
from tests.patience import PATIENCE

pytest.importorskip("ipi")

NAMES = ("OW", "HW")


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_the_file_of_dp_ipi_is_all_it_takes(tmp_path: Path, kind: str) -> None:
    endpoint, frames = free_endpoint(kind), structures.cubic()
    write_input(tmp_path, frames, endpoint, n_beads=3, n_steps=3)
    save_model(tmp_path / "graph.pt")
    names = "".join(f"{NAMES[t]} 0 0 0\n" for t in frames.types)
    (tmp_path / "conf.xyz").write_text(f"{frames.n_atoms}\nwater\n{names}")
    where = place(endpoint)
    given = {
        "verbose": False,
        "use_unix": kind == "unix",
        "port": where if isinstance(where, int) else 31415,
        "host": "127.0.0.1" if isinstance(where, int) else where.removeprefix("/tmp/ipi_"),
        "graph_file": str(tmp_path / "graph.pt"),
        "coord_file": str(tmp_path / "conf.xyz"),
        "atom_type": {"OW": 0, "HW": 1},
    }
    (tmp_path / "water.json").write_text(json.dumps(given))
    command = ("-m", "dpserver", "--dp-ipi", str(tmp_path / "water.json"), "--once")
    with ipi(tmp_path) as process, daemon(*command) as served:
        finish(process, tmp_path)
        assert served.wait(PATIENCE) == 0
    model = checkpoint.load(tmp_path / "graph.pt", device="cpu")
    x, _, _, _ = start(frames)
    expected = model.evaluate(Frames.single(x * BOHR, frames.types, cell_bohr(frames) * BOHR)).energy[0] / HARTREE
    np.testing.assert_allclose(energies(tmp_path)[0], expected, rtol=1e-8)
