"""What ranks compute with; how they meet and part is tested in real MPI jobs, in tests/parallel."""

from __future__ import annotations

import pytest
import torch

from dpserver.daemon.team import Service
from dpserver.parallel.communicator import Place

PLACES = [Place(k, f"n{k // 3}", 100 + k, k // 3, k % 3, (0, 1, 2, 3, 4, 5)) for k in range(6)]


def service(device: str = "auto", threads: int | None = None) -> Service:
    return Service(device, None, threads, "native", "w.pt")


@pytest.mark.parametrize(("n_devices", "expected"), [(2, [0, 1, 0]), (4, [0, 1, 2]), (1, [0, 0, 0])])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_ranks_of_a_node_take_its_devices_in_turn(monkeypatch, device, n_devices, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    found = [service(device).device_of(place) for place in PLACES]
    assert found == [f"cuda:{k}" for k in expected] * 2
    assert service(device).describe(PLACES[1], PLACES) == found[1]


def test_a_device_that_is_named_is_that_of_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert {service("cuda:2").device_of(place) for place in PLACES} == {"cuda:2"}
    assert {service("cpu").device_of(place) for place in PLACES} == {"cpu"}


def test_without_devices_cores_are_shared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert service().device_of(PLACES[0]) == "auto"
    assert [service().describe(place, PLACES) for place in PLACES] == ["2 threads"] * 6
    assert service(threads=1).describe(PLACES[0], PLACES) == "1 thread"
