"""What several tests compare with."""

from __future__ import annotations

import numpy as np
import pytest

from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import finish, free_endpoint, ipi, last_positions, write_input

N_BEADS = 3


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Last positions of three beads of the cubic box in a run that nothing has happened to, (3 n_atoms, 3), Bohr."""
    folder = tmp_path_factory.mktemp("undisturbed")
    endpoint = free_endpoint()
    write_input(folder, structures.cubic(), endpoint, n_beads=N_BEADS)
    with serving(PairModel(), target(endpoint)), ipi(folder) as process:
        finish(process, folder)
    return last_positions(folder)
