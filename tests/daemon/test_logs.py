import json
import logging

import pytest

from dpserver.daemon.logs import JsonFormatter, set_up_logging
from dpserver.errors import ConfigError


@pytest.fixture
def package():
    return logging.getLogger("dpserver")


def test_json_is_one_object_a_line():
    record = logging.LogRecord("dpserver.x", logging.WARNING, "f", 1, "line one\nline %d", (2,), None)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    entry = json.loads(text)
    assert entry["level"] == "warning"
    assert entry["logger"] == "dpserver.x"
    assert entry["message"] == "line one\nline 2"
    assert entry["time"].endswith("+00:00")


def test_json_has_figures_as_numbers():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", ("2 batches/s",), None)
    assert "figures" not in json.loads(JsonFormatter().format(record))
    record.figures = {"batches_per_second": 2.0}
    assert json.loads(JsonFormatter().format(record))["figures"] == {"batches_per_second": 2.0}


def test_json_keeps_tracebacks():
    try:
        raise ValueError("odd")
    except ValueError as error:
        record = logging.LogRecord("x", 40, "f", 1, "m", (), (ValueError, error, error.__traceback__))
    assert "ValueError: odd" in json.loads(JsonFormatter().format(record))["exception"]


def test_a_level_filters_and_setting_up_again_does_not_double(package, capsys):
    for level in ("info", "WARNING"):
        set_up_logging(level, is_json=False)
    logging.getLogger("dpserver.daemon").info("quiet")
    logging.getLogger("dpserver.daemon").warning("loud")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("WARNING loud")


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match="'loud' is unknown; expected one of debug, info"):
        set_up_logging("loud", is_json=False)
