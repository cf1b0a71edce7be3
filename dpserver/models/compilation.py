"""Whether and how potentials are evaluated by kernels, and that these have the weights of the moment."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError
from dpserver.frames import ForceResult, Frames
from dpserver.kernels.threads import check_count
from dpserver.models.accelerated import WithChargeNets
from dpserver.models.behler_parrinello import BehlerParrinello
from dpserver.models.curves import Tabulated, charge_nets, limits_of, tabulated, variable_of
from dpserver.models.fewer_species import BySpecies, is_restrictable
from dpserver.models.folding import ByParameters, Evaluate, is_foldable
from dpserver.models.loc_frame import LocFrame
from dpserver.models.se_e2_a import SeE2A

if TYPE_CHECKING:
    from dpserver.kernels.tables import TableError
    from dpserver.models.accelerated import Accelerated
    from dpserver.models.electrostatics_compiled import WithCharges
    from dpserver.models.electrostatics_near import Near
    from dpserver.models.potential import Potential

logger = logging.getLogger(__name__)

_OF_THE_DEVICE: Final = ("OutOfMemoryError", "AcceleratorError")
"""Torch's errors that say nothing of the kernels."""

_Untabulated = LocFrame | BehlerParrinello
"""Descriptors that the kernels know and need no tables for."""

LARGEST_TABLE_ERROR = 1e-3
"""What may be asked for: with more, forces would not be those of the model any more."""


class Compilation:
    """Compiles potentials when they are first evaluated, and again after their weights have changed.

    What the kernels have no form for is evaluated by `Potential.reference`: other descriptors, embedding nets too sharp
    for tables (activation functions with kinks), everything where numba is missing, and on a GPU where Triton is.

    A change of weights is seen if a tensor is replaced or changed in place; one through `tensor.data[…]` is not.

    Args:
        members: the potentials.
        threads: that compute; by default one for each core available.
        table_error: of forces, relative, that is aimed at.

    Raises:
        ConfigError: a number that is not positive, far too many threads, or tables that would be too coarse.
    """

    def __init__(
        self, members: Sequence[Potential], threads: int | None = None, table_error: float = TABLE_ERROR
    ) -> None:
        if threads is not None:
            check_count(threads)
        check_table_error(table_error)
        self._members = tuple(members)
        self._threads = threads
        self._table_error = table_error
        self._seen: list[_Seen] = []
        self._groups: list[tuple[list[int], Accelerated | None]] = []
        self._stand_ins: dict[int, ByParameters | BySpecies | WithCharges] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy compiles by itself."""
        return {**self.__dict__, "_seen": [], "_groups": [], "_stand_ins": {}}

    def evaluate(self, frames: Frames) -> list[ForceResult]:
        """Energies, forces and virials of a batch by each member.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        results: dict[int, ForceResult] = {}
        for numbers, compiled in self.groups():
            if compiled is None:
                results.update((k, self._alone(k, frames)) for k in numbers)
            else:
                results.update(zip(numbers, compiled.evaluate(frames), strict=True))
        return [results[k] for k in range(len(self._members))]

    def _alone(self, number: int, frames: Frames) -> ForceResult:
        """The answer of a member that has no group: by the reference, or by potentials that stand for it."""
        member = self._members[number]
        if _has_fast_charges(member):
            return self._with_charges(number).evaluate(frames)
        if number not in self._stand_ins:
            if is_foldable(member):
                self._stand_ins[number] = ByParameters(member, self._prepare)
            elif is_restrictable(member) and _has_numba():
                self._stand_ins[number] = BySpecies(member, self._prepare)
            else:
                return member.reference(frames)
        return self._stand_ins[number].evaluate(frames)

    def _with_charges(self, number: int) -> WithCharges:
        """The fast form of a member with charges, made once."""
        from dpserver.models.electrostatics_compiled import (
            WithCharges,
            WithChargesOfSpecies,
            WithChargesOfSurroundings,
        )

        made = self._stand_ins.get(number)
        if not isinstance(made, WithCharges):
            member = self._members[number]
            if charge_nets(member) is None:
                made = WithChargesOfSpecies(member, self._prepare, self._threads)
            else:
                made = WithChargesOfSurroundings(member, self._near(member), self._threads)
            self._stand_ins[number] = made
        return made

    def _near(self, member: Potential) -> Near:
        """What evaluates the part of short range of a member whose charges depend on surroundings."""
        from dpserver.models.electrostatics_near import ByKernels, ByTorch

        exact, compiled = ByTorch(member), self._compile([member])
        return ByKernels(compiled, exact) if isinstance(compiled, WithChargeNets) else exact

    def charged(self) -> WithCharges | None:
        """What evaluates the first member and tells its charges, where that is fast."""
        self.groups()
        return self._with_charges(0) if _has_fast_charges(self._members[0]) else None

    def _prepare(self, member: Potential) -> Evaluate:
        """The fast form of a potential that stands for a member, with certain parameters or species."""
        member.accelerate(self._threads, self._table_error)
        return member.evaluate

    @property
    def has_joint_charges(self) -> bool:
        """Whether the charges of all members that have some can be summed over parts of a structure."""
        return all(member.electrostatics is None or _has_fast_charges(member) for member in self._members)

    def check_sums(self, frames: Frames) -> None:
        """Refuse structures whose charges would take too long to sum, before parts of them are given away.

        Raises:
            StructureError: one would.
        """
        configs = [m.electrostatics.config for m in self._members if m.electrostatics and _has_fast_charges(m)]
        if configs:
            from dpserver.models.electrostatics_method import Methods

            for config in configs:
                Methods(config).choose_or_refuse(frames)

    def descriptions(self) -> list[str]:
        """What evaluates each group of members, in words."""
        found = []
        for numbers, compiled in self.groups():
            member = self._members[numbers[0]]
            if compiled is not None:
                found.append(str(compiled))
            elif _has_fast_charges(member):
                found.append(str(self._with_charges(numbers[0])))
            elif is_foldable(member) or (is_restrictable(member) and _has_numba()):
                found.append("kernels made for the parameters and species that come")
            else:
                found.append("torch: there are no kernels for this model")
        return found

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to: tables, and the machine code of the kernels."""
        made: list[Accelerated | WithCharges] = []
        for numbers, compiled in self.groups():
            if compiled is not None:
                made.append(compiled)
            elif _has_fast_charges(self._members[numbers[0]]):
                made.append(self._with_charges(numbers[0]))
        if made:
            logger.info("getting ready; the first time on a machine its kernels are compiled, up to a minute")
        for one in made:
            one.warm_up()

    def groups(self) -> list[tuple[list[int], Accelerated | None]]:
        """Members that are evaluated together, and what evaluates them: None is the reference."""
        if not self._groups or any(seen.has_changed() for seen in self._seen):
            self._stand_ins.clear()
            self._seen = [_Seen(*named) for member in self._members for named in _tensors(member)]
            keys: dict[Hashable, list[int]] = {}
            for k, member in enumerate(self._members):
                keys.setdefault(_group_key(member), []).append(k)
            self._groups = [(numbers, self._compile_together(numbers)) for numbers in keys.values()]
        return self._groups

    def _compile_together(self, numbers: Sequence[int]) -> Accelerated | None:
        """The form of members of one group; None for the reference, and for those with charges, which are alone."""
        members = [self._members[k] for k in numbers]
        return self._compile(members) if members[0].electrostatics is None else None

    def _compile(self, members: Sequence[Potential]) -> Accelerated | None:
        """The form of the part of short range of potentials; None where there is none."""
        descriptor = _known(members[0])
        if descriptor is None or not _has_numba():
            return None
        compiled: Accelerated | None
        if members[0].device.type == "cpu":
            compiled = _compile_for_cpu(members, self._threads, self._table_error)
        else:
            compiled = _compile_for_gpu(members, self._table_error)
        if compiled is None:
            return None
        if not (compiled.is_accurate or isinstance(descriptor, _Untabulated)):
            logger.warning(
                "the embedding net with activation function %s is too sharp for tables: their error is %.1e; the model "
                "is evaluated without them, much slower",
                descriptor.config.activation_function,
                compiled.error.first,
            )
            return None
        if not isinstance(descriptor, _Untabulated):
            _tell_what_is_reached(self._table_error, members[0].network_dtype)
        logger.info("%s", compiled)
        return compiled


def check_table_error(table_error: float) -> None:
    """Refuse an error of tables that nobody can want.

    Raises:
        ConfigError: it is not positive, or so large that forces would not be those of the model any more.
    """
    if not 0 < table_error <= LARGEST_TABLE_ERROR:
        raise ConfigError(
            f"the error of tables (--table-error) must be positive and at most {LARGEST_TABLE_ERROR:g}, a part of the "
            f"forces; got {table_error:g}"
        )


@functools.cache
def _tell_what_is_reached(table_error: float, dtype: torch.dtype) -> None:
    """Say once where somebody has asked for more than the precision of the nets gives; the default is no such wish."""
    from dpserver.models.assembly import FINEST

    name = str(dtype).removeprefix("torch.")
    finest = FINEST[np.dtype(name)]
    if table_error < finest and table_error != TABLE_ERROR:
        logger.info(
            "--table-error %.1e is finer than rounding leaves: tables of nets in %s are made for %.1e",
            table_error,
            name,
            finest,
        )


class _Seen:
    """A parameter or buffer as it was when it was compiled.

    Args:
        owner: the module's own table of such.
        name: in it.
        tensor: found there.
    """

    def __init__(self, owner: Mapping[str, Tensor | None], name: str, tensor: Tensor) -> None:
        self._owner, self._name, self._tensor = owner, name, tensor
        self._place, self._version = tensor.data_ptr(), tensor._version

    def has_changed(self) -> bool:
        """Whether another tensor is there, or it has other numbers."""
        t = self._tensor
        return self._owner.get(self._name) is not t or t.data_ptr() != self._place or t._version != self._version


def _tensors(member: Potential) -> Iterator[tuple[Mapping[str, Tensor | None], str, Tensor]]:
    """All parameters and buffers, and where they are kept."""
    for module in member.modules():
        for owner in (module._parameters, module._buffers):
            yield from ((owner, name, tensor) for name, tensor in owner.items() if tensor is not None)


def _has_fast_charges(member: Potential) -> bool:
    """Whether a potential has charges, and there are kernels for their interaction."""
    return member.electrostatics is not None and _has_numba()


def _compile_for_cpu(members: Sequence[Potential], threads: int | None, table_error: float) -> Accelerated:
    """The form for the cores of a CPU."""
    if isinstance(members[0].descriptor, BehlerParrinello):
        from dpserver.models.symmetry_compiled import SymmetryCompiled

        return SymmetryCompiled(members, threads)
    from dpserver.models.compiled import Compiled

    return Compiled(members, threads, table_error)


def _compile_for_gpu(members: Sequence[Potential], table_error: float) -> Accelerated | None:
    """The form for a GPU, once it has answered; None, with a warning, where Triton is missing or cannot compile it."""
    try:
        from dpserver.models.device import DeviceCompiled

        compiled = DeviceCompiled(members, table_error)
        compiled.warm_up()
    except Exception as error:  # whatever a compiler may fail with
        if isinstance(error, MemoryError) or type(error).__name__ in _OF_THE_DEVICE:
            raise
        logger.debug("the kernels for the GPU failed", exc_info=error)
        logger.warning(
            "the kernels for the GPU cannot be used (%s: %s); the model is evaluated by torch, many times slower",
            type(error).__name__,
            error,
        )
        return None
    return compiled


def _known(member: Potential) -> Tabulated | _Untabulated | None:
    """The descriptor of a potential that the kernels have a form for, charges apart; on a GPU they know one kind."""
    descriptor = member.descriptor
    has_more = member.n_fparam or member.n_aparam or member.table is not None
    is_known = member.device.type == "cpu" or (isinstance(descriptor, SeE2A) and charge_nets(member) is None)
    if has_more or not is_known:
        return None
    if isinstance(descriptor, BehlerParrinello):  # whose nets torch evaluates, linear ones too
        return descriptor
    charges = member.config.electrostatics
    has_linear_net = charges is not None and charges.environment is not None and not charges.environment.neuron
    if has_linear_net or not member.config.fitting_net.neuron:
        return None
    return descriptor if isinstance(descriptor, LocFrame) else tabulated(member)


def table_error(member: Potential) -> TableError | None:
    """How far the tables that evaluate a potential are from its embedding nets; None where there are none."""
    descriptor = _known(member)
    if descriptor is None or isinstance(descriptor, _Untabulated) or not _has_numba():
        return None
    from dpserver.models.assembly import assemble

    assembly = assemble([member], TABLE_ERROR)
    return assembly.error if assembly.is_accurate else None


def _group_key(member: Potential) -> Hashable:
    """What members that are compiled together have in common."""
    descriptor = _known(member)
    if descriptor is None or member.electrostatics is not None:
        return id(member)
    if isinstance(descriptor, _Untabulated):
        return descriptor.config, member.network_dtype
    config = descriptor.config
    left_out = tuple(frozenset(pairs) for pairs in (descriptor.excluded, descriptor.silent, descriptor.unseen))
    cutoff = (config.rcut, config.rcut_smth, config.env_protection)
    kind = type(descriptor), limits_of(descriptor), variable_of(descriptor), member.network_dtype
    return (*cutoff, *kind, left_out)


@functools.cache
def _has_numba() -> bool:
    """Whether the kernels can be compiled; a warning, once, where they cannot."""
    try:
        import numba
    except ImportError as error:
        logger.warning("numba cannot be imported (%s): models are evaluated by torch, many times slower", error)
        return False
    return bool(numba.__version__)
