"""Every training input that ships is one that `dpserver train` accepts."""

from pathlib import Path

import pytest

from dpserver.train.config import load_input

WATER = Path(__file__).resolve().parents[2] / "examples" / "water"
INPUTS = sorted([*WATER.glob("*.json"), *WATER.glob("*/*.json")])


def test_there_are_some():
    assert {"w.json", "train.json", "cheap.json", "committee.json", "loc_frame.json"} <= {path.name for path in INPUTS}


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: str(path.relative_to(WATER)))
def test_input_is_accepted(path):
    assert load_input(path).model.type_map == ("O", "H")
