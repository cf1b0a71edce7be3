"""The CUDA device that is not there refuses what a real one would, and keeps its order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.pretend_cuda import Claimed, Machine, pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with pretended(2) as found:
        yield found


def ones(index: int = 0) -> torch.Tensor:
    return torch.ones(3, device=f"cuda:{index}")


def test_tensors_are_made_and_moved(machine: Machine) -> None:
    made = [
        torch.zeros(3, device="cuda"), torch.tensor([1.0, 2.0], device="cuda:0"), torch.as_tensor(np.ones(3)).cuda(),
        torch.ones(3).to("cuda"), ones().new_tensor([1, 2]), ones().new_zeros(2), torch.arange(3, device=ones().device),
        torch.ones(3).to(ones()),
    ]  # fmt: skip
    assert {t.device for t in made} == {torch.device("cuda", 0)}
    assert ones(1).add(1).device == torch.device("cuda", 1)
    assert ones().to("cuda:0").cpu().device == torch.device("cpu")
    same = ones()
    assert same.to("cuda") is same
    assert ones()[[2, 0]].tolist() == [1.0, 1.0]
    linear = torch.nn.Linear(2, 3).to("cuda:1")
    assert all(isinstance(p, Claimed) and isinstance(p, torch.nn.Parameter) for p in linear.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ones() + torch.ones(3),
        lambda: ones() + ones(1),
        lambda: torch.ones(3) * ones(),
        lambda: torch.cat([ones(), torch.ones(3)]),
        lambda: torch.ones(3)[torch.zeros(1, dtype=torch.int64, device="cuda")],
        lambda: ones().index_select(0, torch.zeros(1, dtype=torch.int64)),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda: torch.mm(*[torch.ones(2, 2, dtype=torch.int64, device="cuda")] * 2),
    ],
)
def test_what_does_not_go_together_is_refused(machine: Machine, wrong: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError):
        wrong()


def test_numbers_without_dimensions_may_be_the_hosts(machine: Machine) -> None:
    assert (ones() * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("read", [np.asarray, lambda t: t.numpy(), lambda t: t.detach().numpy()])
def test_the_host_does_not_read_what_is_on_the_device(machine: Machine, read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(TypeError, match="tensor to numpy"):
        read(ones())


def test_derivatives_and_optimizers(machine: Machine) -> None:
    x = torch.tensor([1.0, 2.0], device="cuda", requires_grad=True)
    (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (g**2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [36.0, 288.0]  # 36 x³
    torch.optim.Adam([x], fused=True).step()
    assert x.device.type == "cuda"


@pytest.mark.parametrize(
    "wait",
    [lambda t: t.sum().item(), lambda t: t.nonzero(), lambda t: bool(t[0] > 0), lambda t: t.cpu(), lambda t: t[t > 0]],
)
def test_waiting_is_counted_and_impossible_in_a_graph(machine: Machine, wait: Callable[[torch.Tensor], object]) -> None:
    values = ones()
    before = len(machine.waits)
    wait(values)
    assert len(machine.waits) > before
    with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        wait(values)


def test_a_graph_does_nothing_until_it_is_replayed(machine: Machine) -> None:
    total, graph = ones(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        double = 2 * total
        total.add_(1)
    assert total.tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(double.tolist()).all()
    graph.replay()
    assert (total.tolist(), double.tolist()) == ([2.0] * 3, [2.0] * 3)
    graph.replay()
    assert (total.tolist(), double.tolist()) == ([3.0] * 3, [4.0] * 3)


def test_copies_through_pinned_memory_are_late(machine: Machine) -> None:
    host = torch.zeros(3, pin_memory=True)
    host.copy_(ones(), non_blocking=True)
    assert torch.isnan(host).all()
    torch.cuda.current_stream().synchronize()
    assert host.tolist() == [1.0, 1.0, 1.0]
    ones().copy_(host, non_blocking=True)
    host.zero_()
    with pytest.raises(AssertionError, match="pinned memory has changed"):
        torch.cuda.synchronize()


def test_streams_wait_for_each_other(machine: Machine) -> None:
    values, stream = ones(), torch.cuda.Stream()
    with torch.cuda.stream(stream), pytest.raises(AssertionError, match="not finished"):
        values.add_(1)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        values.add_(1)
    with pytest.raises(AssertionError, match="not finished"):
        values.add_(1)
    torch.cuda.current_stream().wait_stream(stream)
    assert values.add_(1).tolist() == [3.0, 3.0, 3.0]


def test_memory_is_full(machine: Machine) -> None:
    machine.fills = 10
    assert len(ones()) == 3
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(11, device="cuda")


def test_kernels_are_launched_where_their_tensors_are(machine: Machine) -> None:
    fused = pytest.importorskip("dpserver.kernels.fused")

    def launch(*tensors: torch.Tensor) -> None:
        fused.sum_rows[(1,)](*tensors, 1, ROWS=4, COLUMNS=8)

    def arguments(device: str) -> list[torch.Tensor]:
        starts = torch.tensor([0, 2], device=device)
        return [torch.ones(2, 1, dtype=torch.float64, device=device), starts, torch.zeros(1, 1, dtype=torch.float64)]

    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        launch(*arguments("cuda"))
    values, starts, host = arguments("cuda:1")
    with pytest.raises(ValueError, match="launched on cuda:0 with a tensor of cuda:1"):
        launch(values, starts, host.to("cuda:1"))
    total = host.to("cuda:1")
    with torch.cuda.device(1):
        launch(values, starts, total)
    assert total.tolist() == [[2.0]]
    assert machine.launches == ["sum_rows"]


def test_threads_have_the_devices_too(machine: Machine) -> None:
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(2, device="cuda:1")))
    thread.start()
    thread.join()
    assert found[0].device == torch.device("cuda", 1)


def test_afterwards_there_is_none() -> None:
    with pretended():
        assert torch.cuda.is_available()
    assert torch.zeros(2).device == torch.device("cpu")
    assert threading.Thread.run.__module__ == "threading"
