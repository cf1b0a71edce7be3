"""Tables of embedding nets that are kept in a model file, so that they need not be made when it is loaded.

What is kept are the polynomials of each pair of species, and which weights they were made from: a model whose weights
have changed since has no use for them.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dpserver.errors import ConfigError
from dpserver.frames import Ints
from dpserver.kernels.tables import DEGREE, Intervals, TableError
from dpserver.models.sizes import is_whole

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

logger = logging.getLogger(__name__)

_MOST_BINS: Final = 512
"""Of a table; `Tabulation` makes 256, and some more where a break is to fall between two."""
_MOST_PARTS: Final = 4096
"""Of a bin, a power of two; `Tabulation` stops at 64, or where halving does not help any more."""
_MOST_INTERVALS: Final = 1 << 15
"""Of a table."""
_MOST_BYTES: Final = 1 << 30
"""Of the coefficients of all pairs together."""
_PAIR: Final = {"end": float, "width": float, "error": list, "parts": torch.Tensor, "coefficients": torch.Tensor}
_OPTIONS: Final = (
    *("type", "rcut", "rcut_smth", "env_protection", "activation_function", "resnet_dt", "type_one_side"),
    *("is_stripped", "is_smooth", "use_econf_tebd"),
)
"""Of descriptors, as far as they have them: what tables depend on beside the weights."""
_AGAIN: Final = "make them again: dpserver tabulate"
_KEEP: Final = "dpserver tabulate writes a file with new ones"


@dataclass(frozen=True, eq=False)
class KeptTable:
    """The polynomials of one pair of species.

    Attributes:
        end: of the range that they were made for.
        intervals: where they hold, and their coefficients.
        error: against the net, as it was measured when they were made.
    """

    end: float
    intervals: Intervals
    error: TableError


@dataclass(frozen=True, eq=False)
class KeptTables:
    """The polynomials of all pairs of species of a potential.

    Attributes:
        fingerprint: of the weights they were made from, see `fingerprint`.
        tolerance: that they were made for.
        pairs: for each species of centres, each species of neighbours.
    """

    fingerprint: str
    tolerance: float
    pairs: tuple[KeptTable, ...]

    @property
    def error(self) -> TableError:
        """The largest of all pairs."""
        found = self.pairs[0].error
        for pair in self.pairs[1:]:
            found = found.largest(pair.error)
        return found

    def find(self, number: int, end: float, tolerance: float) -> Intervals | None:
        """The polynomials of a pair, if they were made for this range and this tolerance.

        Args:
            number: of the pair.
            end: of the range.
            tolerance: that is aimed at.
        """
        pair = self.pairs[number]
        is_same = math.isclose(pair.end, end, rel_tol=1e-12) and math.isclose(self.tolerance, tolerance, rel_tol=1e-12)
        return pair.intervals if is_same else None

    def values(self) -> dict[str, Any]:
        """Plain values and tensors, for a model file."""
        pairs = [
            {
                "end": pair.end,
                "width": pair.intervals.width,
                "error": list(astuple(pair.error)),
                "parts": torch.from_numpy(np.ascontiguousarray(pair.intervals.parts)),
                "coefficients": torch.from_numpy(np.ascontiguousarray(pair.intervals.coefficients)),
            }
            for pair in self.pairs
        ]
        return {"fingerprint": self.fingerprint, "tolerance": self.tolerance, "pairs": pairs}


def fingerprint(member: Potential) -> str:
    """A number of all that the tables of a potential depend on, and of nothing else.

    That is the function which `curves.features` makes of the descriptor: its weights, mean and deviation of the
    environment, the cutoffs, and what says how the nets are put together. The range is kept beside it.
    """
    config = member.config.descriptor
    options = {name: getattr(config, name) for name in _OPTIONS if hasattr(config, name)}
    if options.get("use_econf_tebd"):
        options["species"] = member.species
    found = hashlib.sha256(repr(sorted(options.items())).encode())
    for name, tensor in sorted(member.descriptor.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def make(member: Potential, table_error: float) -> KeptTables:
    """Make the tables of a potential.

    Args:
        member: the potential.
        table_error: of forces, relative, that is aimed at.

    Raises:
        ConfigError: it is evaluated without tables, or these would be too large.
    """
    from dpserver.models.assembly import ACCEPTED, FINEST, dtype_of
    from dpserver.models.curves import tabulated
    from dpserver.models.planning import reach_of, tabulation_of

    if tabulated(member) is None:
        raise ConfigError(f"a model with the descriptor {member.config.descriptor.type} is evaluated without tables")
    tolerance, reach, n = max(table_error, FINEST[dtype_of(member)]), reach_of(member), len(member.species)
    pairs = []
    for centre in range(n):
        for neighbour in range(n):
            made = tabulation_of(member, (centre, neighbour), reach[centre, neighbour], tolerance)
            error = made.table().error
            if max(error.value, error.first) > ACCEPTED * tolerance:
                raise ConfigError(f"the embedding nets are too sharp for tables: their error is {error.first:.1e}")
            pairs.append(KeptTable(made.end, made.intervals, error))
    for number, pair in enumerate(pairs):
        _check_intervals(pair.intervals.parts, f"table {number + 1}")
    _check_total([pair.intervals.coefficients.nbytes for pair in pairs])
    return KeptTables(fingerprint(member), tolerance, tuple(pairs))


def parse(values: Any, member: Potential) -> KeptTables | None:
    """Read what `KeptTables.values` has written.

    Tables of other weights, or of an earlier way to tell weights apart, are left alone with a warning.

    Args:
        values: from a file, whatever they are.
        member: the potential of the same file.

    Raises:
        ConfigError: they are damaged, or not such as this potential could have.
    """
    if not isinstance(values, Mapping) or set(values) != {"fingerprint", "tolerance", "pairs"}:
        raise ConfigError(f"its tables are not as dpserver writes them; {_AGAIN}")
    number, tolerance, pairs = values["fingerprint"], values["tolerance"], values["pairs"]
    n_pairs = len(member.species) ** 2
    if not isinstance(pairs, list) or len(pairs) != n_pairs:
        raise ConfigError(f"its tables are not those of {n_pairs} pairs of species; {_AGAIN}")
    if not isinstance(tolerance, float) or not 0 < tolerance < 1:
        raise ConfigError(f"the tolerance of its tables is {tolerance!r}, expected a number between 0 and 1; {_AGAIN}")
    neuron = getattr(member.config.descriptor, "neuron", None)
    if not neuron:
        raise ConfigError("it has tables, but no embedding nets that these could be of")
    found = tuple(_pair(pair, k, neuron[-1]) for k, pair in enumerate(pairs))
    _check_total([pair.intervals.coefficients.nbytes for pair in found])
    if len({pair["coefficients"].untyped_storage().data_ptr() for pair in pairs}) < n_pairs:
        raise ConfigError(f"several of its tables share their coefficients; {_AGAIN}")
    if number != fingerprint(member):
        logger.warning("the tables in the model file were made from other weights, and are made anew; %s", _KEEP)
        return None
    return KeptTables(number, tolerance, found)


def _check_total(n_bytes: Sequence[int]) -> None:
    """Refuse tables that take too much memory."""
    if sum(n_bytes) > _MOST_BYTES:
        raise ConfigError(f"tables of {sum(n_bytes) / 1e9:.2g} GB are more than a model file keeps")


def _check_intervals(parts: Ints, what: str) -> None:
    """Refuse what `Tabulation` cannot make."""
    if not 0 < len(parts) <= _MOST_BINS:
        raise ConfigError(f"{what} has {len(parts)} bins, expected 1 to {_MOST_BINS}; {_AGAIN}")
    if parts.min() < 1 or parts.max() > _MOST_PARTS or (parts & (parts - 1)).any():
        raise ConfigError(f"{what} cuts bins otherwise than into 1, 2, 4, … {_MOST_PARTS} intervals; {_AGAIN}")
    if parts.sum() > _MOST_INTERVALS:
        raise ConfigError(f"{what} has more than {_MOST_INTERVALS} intervals; {_AGAIN}")


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a number in memory for each of its own, one after the other."""
    return is_whole(tensor) and tensor.is_contiguous()


def _pair(values: Any, number: int, n_channels: int) -> KeptTable:
    """The polynomials of one pair of species from a file."""
    what = f"table {number + 1} of its tables"
    if not isinstance(values, Mapping) or any(not isinstance(values.get(k), kind) for k, kind in _PAIR.items()):
        raise ConfigError(f"{what} lacks some of {', '.join(_PAIR)}; {_AGAIN}")
    end, width, error, parts, coefficients = (values[key] for key in _PAIR)
    if parts.dtype != torch.int64 or parts.dim() != 1 or coefficients.dtype != torch.float64:
        raise ConfigError(f"{what} holds tensors of other types than dpserver writes; {_AGAIN}")
    if not _is_whole(parts) or not _is_whole(coefficients):
        raise ConfigError(f"{what} holds tensors that say more numbers than they have; {_AGAIN}")
    _check_intervals(parts.numpy(), what)
    shape = (int(parts.sum()), DEGREE + 1, n_channels)
    if coefficients.shape != shape:
        raise ConfigError(f"{what} has coefficients of shape {tuple(coefficients.shape)}, expected {shape}; {_AGAIN}")
    numbers = [end, width, *error]
    are_numbers = len(error) == 3 and all(isinstance(v, float) and math.isfinite(v) and v >= 0 for v in numbers)
    if not are_numbers or not coefficients.isfinite().all() or not 0 < end <= width * len(parts):
        raise ConfigError(f"{what} holds numbers that make no sense; {_AGAIN}")
    return KeptTable(end, Intervals(width, parts.numpy(), coefficients.numpy()), TableError(*error))
