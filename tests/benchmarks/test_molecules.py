"""The part of the science about molecules: its inputs are valid, and its page is written from any of its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.science import molecules
from dpserver.models.config import parse
from dpserver.train.config import TrainInput


@pytest.mark.parametrize("molecule", molecules.TRAIN)
@pytest.mark.parametrize("kind", molecules.FITTINGS)
def test_inputs_are_valid(molecule: str, kind: str) -> None:
    settings = {"molecule": molecule, "kind": kind, "seed": 1}
    config = parse(TrainInput, molecules.training_input(settings, Path("data"), 400))
    assert config.model.descriptor.type == kind
    assert config.training.numb_steps == 400


def record(**values: Any) -> dict[str, Any]:
    measured = {"frames": 1000, "energy_mae": 10.0, "force_mae": 40.0, "served_ms": 1.0, "batch_ms": 0.5}
    about = {"seconds": 70.0, "training_cpu_seconds": 60.0, "date": "2026-01-01", "machine": "one", "versions": {}}
    return {**measured, **about, "is_quick": False, "settings": {"seed": 1}, **values}


def test_the_page_has_what_was_measured() -> None:
    assert "Not measured yet" in molecules.page({})
    assert [claim.is_reached for claim in molecules.claims({})] == [None, None]
    found = {"ethanol_se_e2_a": record(), "ethanol_gdml": record(force_mae=39.0)}
    assert "| se_e2_a | 1000 | 1.0 | 10.0 | 40.0 | 1.0 | 0.50 |" in molecules.page(found)
    assert [claim.is_reached for claim in molecules.claims(found)] == [False, None]
    found["ethanol_loc_frame"] = record(force_mae=38.0)
    assert molecules.claims(found)[0].is_reached
    found["ethanol_gdml"] = record(force_mae=39.0, frames=300)
    assert molecules.claims(found)[0].is_reached is None
    found["ethanol_gdml"] = record(force_mae=37.0, frames=300)  # better, although from fewer
    assert molecules.claims(found)[0].is_reached is False
