from __future__ import annotations

import sys
import threading

import pytest

from dpserver.errors import ConfigError
from dpserver.monitor import Meter, Phase
from dpserver.monitor.pages import health, make_pages, readiness


@pytest.mark.parametrize("phase", Phase)
def test_ready_is_who_can_answer(phase):
    meter = Meter()
    meter.phase = phase
    page = readiness(meter)
    assert page.status == (200 if phase is Phase.SERVING else 503)
    assert page.body.decode() == f"{phase.value}\n"


def test_alive_while_the_model_is_loaded():
    page = health(Meter())
    assert (page.status, page.body) == (200, b"loading the model\n")


def test_alive_is_who_turns_when_woken():
    meter = Meter()
    meter.wake = lambda: threading.Thread(target=meter.awake).start()
    assert health(meter).status == 200


def test_a_thread_that_hangs_is_not_alive():
    meter = Meter()
    meter.awake()
    woken, slept = [], []
    meter.wake = lambda: woken.append(True)
    page = health(meter, slept.append)
    assert page.status == 503
    assert "does not answer; waited 2 s" in page.body.decode()
    assert woken == [True]
    assert sum(slept) == pytest.approx(2.0)


def test_the_pages():
    pytest.importorskip("prometheus_client")
    pages = make_pages(Meter())
    assert set(pages) == {"/metrics", "/healthz", "/readyz"}
    metrics = pages["/metrics"]()
    assert metrics.status == 200
    assert metrics.content_type.startswith("text/plain; version=0.0.4")
    assert b"dpserver_batch_frames_count 0.0" in metrics.body


def test_prometheus_client_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "dpserver.monitor.prometheus", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'dpserver\[metrics\]'"):
        make_pages(Meter())
