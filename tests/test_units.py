"""Constants against ASE's, to the last bit: what ASE sends must come back unchanged."""

from __future__ import annotations

import ase.units
import pytest

from dpserver import units


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (units.BOHR, ase.units.Bohr),
        (units.HARTREE, ase.units.Hartree),
        (units.BOLTZMANN, ase.units.kB),
        (units.KCAL_PER_MOL, ase.units.kcal / ase.units.mol),
        (units.HARTREE_PER_BOHR, ase.units.Hartree / ase.units.Bohr),
    ],
    ids=["Bohr", "Hartree", "Boltzmann", "kcal/mol", "Hartree/Bohr"],
)
def test_same_as_ase(ours: float, theirs: float) -> None:
    assert ours == theirs


def test_same_codata_as_ase_by_default() -> None:
    version = ase.units.__codata_version__
    assert version == "2014"
    assert ase.units.create_units(version)["Bohr"] == units.BOHR
