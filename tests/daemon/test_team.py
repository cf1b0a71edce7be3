"""What ranks compute with; how they meet and part is tested in real MPI jobs, in tests/parallel."""

from __future__ import annotations

import pytest
import torch

from dpserver.daemon.team import Service, shared_devices
from dpserver.parallel.communicator import Place

PLACES = [Place(k, f"n{k // 3}", 100 + k, k // 3, k % 3, (0, 1, 2, 3, 4, 5)) for k in range(6)]


def service(device: str = "auto", threads: int | None = None) -> Service:
    return Service(device, None, threads, "native", "w.pt")


@pytest.fixture(autouse=True)
def all_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


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


def test_several_ranks_may_share_a_device_and_the_log_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = [service().describe(place, PLACES) for place in PLACES]
    assert shared_devices(PLACES, about) == [
        "cuda:0 of n0 is shared by the ranks 0, 2",
        "cuda:0 of n1 is shared by the ranks 3, 5",
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert not shared_devices(PLACES, [service().describe(place, PLACES) for place in PLACES])
    assert not shared_devices(PLACES, ["2 threads"] * 6)


def test_devices_that_the_launcher_has_dealt_out_are_not_the_same(monkeypatch):
    """Slurm shows each rank one GPU, and each calls it cuda:0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = []
    for place in PLACES:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(place.local_rank))
        about.append(service().describe(place, PLACES))
    assert about[1] == "cuda:0 of CUDA_VISIBLE_DEVICES=1"
    assert not shared_devices(PLACES, about)


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda:1", True), ("cpu", False)])
def test_what_goes_to_a_gpu_is_staged_in_pinned_memory(monkeypatch, device, is_pinned):
    pytest.importorskip("triton")
    from dpserver.models.device_batch import staging

    asked = []
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: asked.append((shape, options)))
    staging(torch.device(device), 5, 3)
    assert asked == [(((5, 3),), {"dtype": torch.float64, "pin_memory": is_pinned})]
