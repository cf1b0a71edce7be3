"""What DeePMD-kit's users bring along is accepted, or refused by the name of the key."""

import json

import pytest

from dpserver.errors import ConfigError
from dpserver.models.section import parse
from dpserver.train.config import TrainInput, load_input
from tests.train.inputs import ACCEPTED, REFUSED


@pytest.mark.parametrize("name", ACCEPTED)
def test_is_accepted(name):
    found = parse(TrainInput, ACCEPTED[name])
    assert parse(TrainInput, json.loads(json.dumps(found.model_dump(mode="json")))) == found


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_key(name):
    data, expected = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        parse(TrainInput, data)
    assert f"; {error.value}".find(f"; {expected}") >= 0


def test_the_same_in_yaml(tmp_path):
    yaml = pytest.importorskip("yaml")
    data = ACCEPTED["se_e2_a"]
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "input.json").write_text(json.dumps(data))
    assert load_input(tmp_path / "input.yaml") == load_input(tmp_path / "input.json")
