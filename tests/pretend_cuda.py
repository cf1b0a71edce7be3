"""A CUDA device that is not there: tensors that say they lie on it, and refuse what tensors there would refuse.

Such a tensor holds an ordinary one, and every operation on it is made on that. What is shown by this, on a machine
without a GPU:

- A tensor of the host, or of another device, in an operation with tensors of a device is refused (numbers without
  dimensions are not, as in torch), and so are `numpy()`, generators of the host, and products of integers.
- Kernels of Triton are launched on tensors of the device that is current, and on no others.
- What waits for the device is counted (`Machine.waits`), and refused while a graph is captured.
- A graph does nothing while it is captured, keeps the memory that it has been captured with, and does all when it is
  replayed; what is not in it is not done.
- Copies through pinned memory happen late: what comes back is NaN until somebody has waited, and what goes down must
  not change until then.
- What one stream writes, another must not touch before it has waited.

What it does not show: whether kernels compile, how long anything takes, what comes out differently because the device
adds up in another order or has operations of its own, how much memory is taken, what the driver or another process
does, and whatever torch decides in C++ by a tensor's real kind, which here is `meta`. A parameter that is moved becomes
another object, where torch itself would give the old one other numbers.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
_FIRST = 64
"""Numbers of the devices `meta` that stand for CUDA's; that of torch itself has none."""
GIGABYTE = 1 << 30

_WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.unique_consecutive,
    aten._unique2, aten.unique_dim, aten.bincount, aten.histc, aten.allclose,
}  # fmt: skip
"""What cannot be answered without a look at the numbers."""

_ONE_DEVICE = {
    aten.cat, aten.stack, aten.mm, aten.bmm, aten.addmm, aten.index_select, aten.gather, aten.index_add,
    aten.index_add_, aten.index_copy, aten.index_copy_, aten.scatter_add, aten.scatter_add_, aten.searchsorted,
}  # fmt: skip
"""Where not even numbers without dimensions may be the host's."""

_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot}


class Claimed(Tensor):
    """A tensor that says it is on a CUDA device.

    Args:
        host: its numbers.
        index: of the device.
    """

    host: Tensor
    index: int

    @staticmethod
    def __new__(cls, host: Tensor, index: int) -> Claimed:
        # To torch itself it is of the device `meta`, which is there always, and whose derivatives the thread that asks
        # for them makes.
        return Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=torch.device("meta", _FIRST + index),
        )  # fmt: skip

    def __init__(self, host: Tensor, index: int) -> None:
        self.host, self.index = host, index

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _machine().call(func, args, kwargs or {})

    device = property(lambda self: torch.device("cuda", self.index))
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @property
    def data(self) -> Claimed:
        return Claimed(self.host, self.index)

    @data.setter
    def data(self, values: Claimed) -> None:
        torch._C.TensorBase.data.__set__(self, values)
        self.host, self.index = values.host, values.index

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def is_pinned(self) -> bool:
        return False

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Claimed:
        copy = Claimed(self.host.clone(), self.index)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __repr__(self) -> str:
        return f"Claimed({self.host!r}, cuda:{self.index})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)


class Stream:
    """Work in order; `clock` says up to which work of every other stream it has waited."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        machine = _machine()
        self.device = torch.device("cuda", machine.index_of(device))
        self.clock: dict[Stream, int] = {self: 0}

    def wait_stream(self, other: Stream) -> None:
        for stream, count in other.clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), count)

    def synchronize(self) -> None:
        _machine().wait("Stream.synchronize", self)


class Event:
    """A moment of a stream."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.is_recorded = False

    def record(self, stream: Stream | None = None) -> None:
        self.is_recorded = True

    def elapsed_time(self, other: Event) -> float:
        assert self.is_recorded
        assert other.is_recorded
        assert not _machine().has_work(), "the time between two events that nobody has waited for"
        return 1.0


class Graph:
    """What was captured, to be done again on the same memory."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.touched: list[Tensor] = []
        self.index: int | None = None

    def replay(self) -> None:
        assert self.index is not None, "a graph is replayed before it has been captured"
        machine = _machine()
        with _disable_current_modes():
            machine.order(self.touched, self.index)
            for piece in self.work:
                piece()


class _Capture:
    """The memory a graph finds, as it was, and that which it takes for itself."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self.own: dict[int, Tensor] = {}

    def add(self, piece: Callable[[], None], before: list[Tensor], made: list[Tensor]) -> None:
        self.graph.work.append(piece)
        known = {_place(t) for t in before}
        for tensor in made:
            if _place(tensor) not in known and _place(tensor) not in self.found:
                self.own[_place(tensor)] = tensor

    def keep(self, tensors: list[Tensor]) -> None:
        for t in tensors:
            if _place(t) not in self.own and _place(t) not in self.found:
                self.found[_place(t)] = t, t.untyped_storage().clone()

    def close(self) -> None:
        """Nothing has been done yet: bring back what was there; what is new holds nothing."""
        for tensor, before in self.found.values():
            tensor.untyped_storage().copy_(before)
        for tensor in self.own.values():
            tensor.untyped_storage().fill_(255)  # NaN, in any floating-point number
        self.graph.touched = [tensor for tensor, _ in self.found.values()]
        self.graph.index = _machine().current


class Machine:
    """The devices, and what is going on there.

    Attributes:
        waits: what the host has waited for, by name of the operation.
        launches: kernels of Triton that have been launched.
        fills: raise torch's error of full memory where a tensor of more numbers is asked for.
    """

    def __init__(self, n_devices: int) -> None:
        self.n_devices = n_devices
        self.waits: list[str] = []
        self.launches: list[str] = []
        self.graphs = 0
        self.fills: int | None = None
        self.here = threading.local()
        self.capture: _Capture | None = None
        self.pinned: list[weakref.ref[Tensor]] = []
        self._pinned_places: set[int] = set()
        self._defaults: dict[int, Stream] = {}
        self._writers: dict[int, tuple[Stream, int]] = {}
        self._late: list[tuple[Stream, int, Tensor, Tensor, bool]] = []

    # Devices and streams

    @property
    def current(self) -> int:
        return getattr(self.here, "device", 0)

    def index_of(self, device: Any) -> int:
        if device is None:
            return self.current
        index = device if isinstance(device, int) else torch.device(device).index
        index = self.current if index is None else index
        assert index < self.n_devices, f"there is no device {index}"
        return index

    def stream(self, index: int | None = None) -> Stream:
        index = self.current if index is None else index
        chosen: dict[int, Stream] = getattr(self.here, "streams", {})
        if index in chosen:
            return chosen[index]
        if index not in self._defaults:
            self._defaults[index] = Stream(index)
        return self._defaults[index]

    @contextlib.contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, device = getattr(self.here, "streams", {}), self.current
        self.here.streams, self.here.device = {**before, stream.device.index: stream}, stream.device.index
        try:
            yield
        finally:
            self.here.streams, self.here.device = before, device

    @contextlib.contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        before = self.current
        self.here.device = self.index_of(device)
        try:
            yield
        finally:
            self.here.device = before

    def order(self, tensors: list[Tensor], index: int | None = None) -> None:
        """Enter work on some memory into the current stream, which must have waited for whoever wrote there last."""
        if self.capture is not None:
            return
        stream = self.stream(index)
        stream.clock[stream] += 1
        for tensor in tensors:
            writer, count = self._writers.get(_place(tensor), (stream, 0))
            assert stream.clock.get(writer, 0) >= count, "a stream takes what another has not finished"
            self._writers[_place(tensor)] = stream, stream.clock[stream]

    def _enter(self, tensor: Tensor, index: int) -> None:
        """New memory, which may have been another's before, who has left it to the current stream."""
        stream = self.stream(index)
        self._writers[_place(tensor)] = stream, stream.clock[stream]

    # Waiting

    def wait(self, why: str, stream: Stream | None = None) -> None:
        """The host waits for a stream, or for all: then copies are where they should be."""
        if self.capture is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.waits.append(why)
        late, self._late = self._late, []
        for work in late:
            by, count, target, source, is_down = work
            if stream is not None and stream.clock.get(by, 0) < count:
                self._late.append(work)
            elif is_down:
                assert torch.equal(_bits(target), _bits(source)), "pinned memory has changed while it was copied"
            else:
                target.copy_(source)

    def has_work(self) -> bool:
        return bool(self._late)

    # Operations

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation on what the tensors hold."""
        flat, spec = tree_flatten((args, kwargs))
        claimed = [x for x in flat if isinstance(x, Claimed)]
        packet = func.overloadpacket
        target = kwargs.get("device")
        goes_down = _is_hidden(target)
        if not claimed and not goes_down:
            return self._on_host(func, args, kwargs)
        if packet is aten._to_copy and (goes_down or target is not None):
            return self._copy(args[0], kwargs)
        if packet is aten.copy_ and (not isinstance(args[0], Claimed) or not isinstance(args[1], Claimed)):
            return self._copy_into(*args[:3])
        hidden = [x for x in flat if isinstance(x, Tensor) and x.device.type == "meta"]
        assert not hidden, f"{func} got a tensor without numbers, made where it cannot be seen"
        index = target.index - _FIRST if goes_down else claimed[0].index
        self._check(func, packet, flat, claimed, args)
        host_args, host_kwargs = tree_unflatten([x.host if isinstance(x, Claimed) else x for x in flat], spec)
        if goes_down:
            host_kwargs["device"] = torch.device("cpu")
        host_kwargs.pop("pin_memory", None)
        if host_kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return self._do(func, host_args, host_kwargs, claimed, index)

    def _do(self, func: Any, args: Any, kwargs: Any, claimed: list[Claimed], index: int) -> Any:
        before = [c.host for c in claimed]
        self.order(before, index)
        if self.capture is not None:
            self.capture.keep(before)
        found = tree_map(_written_down, func(*args, **kwargs))
        made = [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]
        if self.fills is not None and any(t.numel() > self.fills for t in made):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        places = {_place(t) for t in before}
        for tensor in made:
            if _place(tensor) not in places:
                self._enter(tensor, index)
        if self.capture is not None:
            self.capture.add(_again(func, args, kwargs, made, places), before, made)
        known = {id(c.host): c for c in claimed}

        def claim(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else Claimed(x, index)

        return tree_map(claim, found)

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        is_pinned = kwargs.get("pin_memory", False)
        found = func(*args, **{**kwargs, "pin_memory": False} if is_pinned else kwargs)
        if is_pinned:
            self.pin(found)
        return found

    def pin(self, tensor: Tensor) -> None:
        place = _place(tensor)
        self._pinned_places.add(place)
        weakref.finalize(tensor.untyped_storage(), self._pinned_places.discard, place)
        self.pinned.append(weakref.ref(tensor))

    def is_pinned(self, tensor: Tensor) -> bool:
        return _place(tensor) in self._pinned_places

    def _check(self, func: Any, packet: Any, flat: list[Any], claimed: list[Claimed], args: Any) -> None:
        if packet is aten.copy_:
            return
        if len({c.index for c in claimed}) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, found two of them in {func}")
        host = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Claimed)]
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            if not isinstance(args[0], Claimed):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if [x for x in host if x.ndim]:
                self.wait(f"{func} by indices of the host")
            if any(c.dtype == torch.bool for c in claimed[1:]):
                self.wait(f"{func} by a mask")
        elif any(x.ndim or packet in _ONE_DEVICE for x in host):
            shapes = [tuple(x.shape) for x in host]
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {shapes} of the host")
        if packet in _PRODUCTS and not claimed[0].dtype.is_floating_point:
            raise NotImplementedError(f"{func} is not implemented on CUDA for {claimed[0].dtype}")
        has_unknown_size = packet is aten.repeat_interleave and not any(isinstance(x, int) for x in flat)
        if packet in _WAITS or has_unknown_size:
            self.wait(str(func))

    def _copy(self, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A tensor in another place, or type."""
        target, dtype = kwargs["device"], kwargs.get("dtype") or source.dtype
        values = source.host if isinstance(source, Claimed) else source
        if _is_hidden(target):
            index = target.index - _FIRST
            found = Claimed(torch.empty_like(values, dtype=dtype), index)
            self._enter(found.host, index)
            if isinstance(source, Claimed):
                return self._do(aten._to_copy.default, (values,), {"dtype": dtype}, [source], index)
            self._copy_into(found, source, kwargs.get("non_blocking", False))
            return found
        found = torch.empty_like(values, dtype=dtype)
        if kwargs.get("non_blocking"):
            self.pin(found)
        self._copy_into(found, source, kwargs.get("non_blocking", False))
        return found

    def _copy_into(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Between the host and a device."""
        goes_down = isinstance(target, Claimed)
        device = target if isinstance(target, Claimed) else source
        assert isinstance(device, Claimed)
        host = source if goes_down else target
        if self.capture is not None:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
        self.order([device.host], device.index)
        (target.host if isinstance(target, Claimed) else target).copy_(
            source.host if isinstance(source, Claimed) else source
        )
        if not (non_blocking and self.is_pinned(host)):
            self.wait("copy to the device" if goes_down else "copy to the host")
            return target
        stream = self.stream(device.index)
        self._late.append((stream, stream.clock[stream], host, host.clone(), goes_down))
        if not goes_down:
            host.untyped_storage().fill_(255)
        return target


class Launcher:
    """A kernel of Triton, launched by its interpreter on what the tensors hold.

    Args:
        kernel: the interpreted one.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            machine = _machine()
            name = self._kernel.fn.__name__
            tensors = [x for x in args if isinstance(x, Tensor)]
            for x in tensors:
                if not isinstance(x, Claimed):
                    raise ValueError(f"Pointer argument cannot be accessed from Triton (cpu tensor?): {name}")
                if x.index != machine.current:
                    raise ValueError(f"{name} is launched on cuda:{machine.current} with a tensor of cuda:{x.index}")
            machine.launches.append(name)
            memory = [x.host for x in tensors if isinstance(x, Claimed)]
            held = [x.host.detach() if isinstance(x, Claimed) else x for x in args]

            def run() -> None:
                with _disable_current_modes(), torch._C.DisableTorchFunction():
                    self._kernel[grid](*held, **kwargs)

            if machine.capture is not None:
                machine.capture.keep(memory)
                machine.capture.add(run, memory, [])
            machine.order(memory)
            run()

        return launch


class _Functions(TorchFunctionMode):
    """Names of CUDA devices, before torch looks for one."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is Tensor.cuda:
            return args[0].to(_hidden(torch.device("cuda", _machine().index_of(args[1] if len(args) > 1 else None))))
        if func is Tensor.is_pinned:
            return _machine().is_pinned(args[0])
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = _hidden(torch.device(kwargs.pop("device")))
            needs_derivatives = kwargs.pop("requires_grad", False)
            found = func(*args, **kwargs).to(device)
            return found.requires_grad_() if needs_derivatives else found
        if func is Tensor.new_tensor and isinstance(args[0], Claimed):
            found = torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs})
            return found.to(_hidden(args[0].device))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Claimed):
            args = (args[0], _index(args[1], args[0].device), *args[2:])
        if "device" in kwargs and isinstance(kwargs["device"], str | int):
            kwargs["device"] = torch.device(kwargs["device"])
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], torch.device(args[1]), *args[2:])
        return func(*tree_map(_hidden, args), **tree_map(_hidden, kwargs))


class _Operations(TorchDispatchMode):
    """Operations that make tensors of a device from none."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _machine().call(func, args, kwargs or {})


def _hidden(value: Any) -> Any:
    """A CUDA device by the name that torch has it under here."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta", _FIRST + _machine().index_of(value))
    return value


def _is_hidden(device: torch.device | None) -> bool:
    return device is not None and device.type == "meta" and (device.index or 0) >= _FIRST


def _index(index: Any, device: torch.device) -> Any:
    """An index without lists of numbers, which torch brings to the device by ways that are not to be seen."""
    parts = index if isinstance(index, tuple) else (index,)
    found = tuple(torch.tensor(part).to(_hidden(device)) if isinstance(part, list) else part for part in parts)
    return found if isinstance(index, tuple) else found[0]


def _place(tensor: Tensor) -> int:
    """Where its memory begins."""
    return tensor.untyped_storage().data_ptr()


def _written_down(value: Any) -> Any:
    """Zeros that torch only knows of, as a tensor with memory."""
    if isinstance(value, Tensor) and value._is_zerotensor():
        return torch.zeros(value.shape, dtype=value.dtype)
    return value


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _again(func: Any, args: Any, kwargs: Any, made: list[Tensor], places: set[int]) -> Callable[[], None]:
    """The same operation, with its results where they were the first time."""
    new = [k for k, t in enumerate(made) if _place(t) not in places]

    def run() -> None:
        found = [x for x in tree_flatten(func(*args, **kwargs))[0] if isinstance(x, Tensor)]
        for k in new:
            made[k].copy_(found[k])

    return run


_running: list[Machine] = []


def _machine() -> Machine:
    return _running[-1]


@contextlib.contextmanager
def _captured(graph: Graph, **_: Any) -> Iterator[None]:
    machine = _machine()
    machine.wait("capture")
    machine.graphs += 1
    stream = Stream()
    stream.wait_stream(machine.stream())
    with machine.on_stream(stream):
        machine.capture = _Capture(graph)
        try:
            yield
            machine.capture.close()
        finally:
            machine.capture = None
    machine.stream().wait_stream(stream)


def _kernels() -> dict[str, Any]:
    """All kernels that are launched, interpreted; none where Triton is missing."""
    if find_spec("triton") is None:
        return {}
    from triton.runtime.interpreter import InterpretedFunction

    from dpserver.kernels import fused

    found = {name: kernel for name, kernel in vars(fused).items() if isinstance(kernel, InterpretedFunction)}
    assert found, "Triton does not interpret its kernels; set TRITON_INTERPRET=1 before it is imported"
    return {name: kernel for name, kernel in found.items() if not name.startswith("_")}


@contextlib.contextmanager
def pretended(n_devices: int = 1) -> Iterator[Machine]:
    """Have CUDA devices, in this thread and those started meanwhile, until the block ends."""
    machine = Machine(n_devices)
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Functions(), _Operations():
            run(thread)

    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: n_devices,
        "current_device": lambda: machine.current,
        "set_device": lambda device: setattr(machine.here, "device", machine.index_of(device)),
        "current_stream": lambda device=None: machine.stream(machine.index_of(device)),
        "stream": machine.on_stream,
        "device": machine.on_device,
        "is_current_stream_capturing": lambda: machine.capture is not None,
        "synchronize": lambda device=None: machine.wait("synchronize"),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": _captured,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "pretended GPU",
        "memory_reserved": lambda device=None: GIGABYTE,
        "memory_allocated": lambda device=None: GIGABYTE,
        "max_memory_allocated": lambda device=None: GIGABYTE,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (GIGABYTE, 2 * GIGABYTE),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(threading.Thread, "run", run_there)
        for name, kernel in _kernels().items():
            patch.setattr(f"dpserver.kernels.fused.{name}", Launcher(kernel))
        _running.append(machine)
        try:
            with _Functions(), _Operations():
                yield machine
        finally:
            _running.pop()
