"""Which atom is of which species. The wire does not say; this module decides, says why, and never guesses.

Authority, highest first: the peer's INIT parameters (`template: water.xyz` or `species: O H H`), the endpoint's
`--template` or `--species`, the model's own template, the only species of a model that has no other. A unit of atoms
stands for the atoms of a structure, or for a whole part of them, repeated.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from dpserver import neighbors
from dpserver.engine.parameters import Parameters, from_init, resolve
from dpserver.engine.runner import ForceModel
from dpserver.engine.templates import read_symbols
from dpserver.engine.wrapped import check_wholes
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.ipi import Structures
from dpserver.models.parameters import taken_by
from dpserver.neighbors import Edges
from dpserver.neighbors.crowds import crowd, crowd_distance

logger = logging.getLogger(__name__)

CLOSEST_SHARE = 0.75
"""Of the smallest distance in training. In frames of liquid water beads stay above 0.85 of it, while a molecule whose
O and H have changed places falls below 0.73."""


@dataclass(frozen=True)
class Order:
    """The species of a unit of atoms, in the order of the atoms.

    Attributes:
        symbols: of each atom.
        origin: who says so, for messages.
    """

    symbols: tuple[str, ...]
    origin: str

    @classmethod
    def from_text(cls, text: str, origin: str) -> Order:
        """Read symbols between spaces or commas.

        Raises:
            ConfigError: there is none.
        """
        symbols = tuple(text.replace(",", " ").split())
        if not symbols:
            raise ConfigError(f"{origin} names no species; expected symbols in the order of the atoms, as 'O H H'")
        return cls(symbols, f"{origin} ({text.strip()})")

    @classmethod
    def from_file(cls, path: Path, origin: str) -> Order:
        """Read the symbols of a structure file.

        Raises:
            ConfigError: the file is missing or cannot be read.
        """
        return cls(read_symbols(path), f"{origin} ({path})")

    def types(self, species: Sequence[str]) -> Ints:
        """Index of each symbol in a model's species, (n_symbols,), int64.

        Raises:
            StructureError: the model does not know one.
        """
        index = {symbol: k for k, symbol in enumerate(species)}
        for atom, symbol in enumerate(self.symbols):
            if symbol not in index:
                near = [s for s in species if s.casefold() == symbol.casefold()]
                near = near or difflib.get_close_matches(symbol, species, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise StructureError(
                    f"species {symbol!r} (atom {atom} of {self.origin}) is unknown to the model, "
                    f"which knows {', '.join(species)}{hint}"
                )
        return np.array([index[symbol] for symbol in self.symbols], dtype=np.int64)

    def summary(self) -> str:
        """Runs of species, as `O H×2 O H×2 …`."""
        runs = [(symbol, len(list(same))) for symbol, same in groupby(self.symbols)]
        words = [symbol if count == 1 else f"{symbol}×{count}" for symbol, count in runs]
        return " ".join(words[:6] + ["…"] * (len(words) > 6))


@dataclass(frozen=True)
class TypedOrder(Order):
    """The types of a unit of atoms whose names, as those of a force field, are no symbols.

    Attributes:
        indices: type of each atom in the model's species.
    """

    indices: tuple[int, ...]

    @classmethod
    def from_names(cls, path: Path, types: Mapping[str, int], origin: str) -> TypedOrder:
        """Read the names of the atoms of an XYZ file.

        Args:
            path: of the file, whatever its suffix.
            types: type of each name.
            origin: who says so, for messages.

        Raises:
            ConfigError: the file is missing or cannot be read, or a name has no type.
        """
        names = read_symbols(path, is_xyz=True)
        for atom, name in enumerate(names):
            if name not in types:
                raise ConfigError(
                    f"atom {atom} of {path} is called {name!r}, to which {origin} gives no type; "
                    f"it knows {', '.join(types)}"
                )
        return cls(names, f"{origin} ({path})", tuple(types[name] for name in names))

    def types(self, species: Sequence[str]) -> Ints:
        """Type of each atom, (n_symbols,), int64.

        Raises:
            StructureError: the model has not so many.
        """
        largest = max(self.indices)
        if largest >= len(species):
            name = self.symbols[self.indices.index(largest)]
            raise StructureError(
                f"{self.origin} gives {name!r} the type {largest}; the model has 0 to {len(species) - 1}: "
                f"{', '.join(species)}"
            )
        return np.array(self.indices, dtype=np.int64)


def order_from_parameters(parameters: Mapping[str, str]) -> Order | None:
    """Find the order among a peer's INIT parameters.

    Raises:
        ConfigError: both a template and species are given, or the template cannot be read.
    """
    template, species = parameters.get("template"), parameters.get("species")
    if template and species:
        raise ConfigError("the peer's INIT parameters hold both a template and species; give one of them")
    if template:
        return Order.from_file(Path(template.strip("'\"")), "the peer's INIT template")
    if species:
        return Order.from_text(species.strip("'\"[]()"), "the peer's INIT species")
    return None


class Assigner:
    """Turns the bare coordinates of one connection into frames with species.

    Args:
        model: knows species, its own template and the smallest distances.
        order: the endpoint's own, if any.
        name: of the connection, for the log.
        level: of the line in the log that says which species were found.
        given: parameters of the endpoint, for models that take such.

    Attributes:
        parameters: of the peer's INIT, which rule over the rest.
    """

    def __init__(
        self,
        model: ForceModel,
        order: Order | None,
        name: str,
        level: int = logging.INFO,
        given: Parameters | None = None,
    ) -> None:
        self._model = model
        self._given = given or Parameters()
        self._fparam: Floats | None = None
        self._aparam: Floats | None = None
        self._order = order
        self._name = name
        self._level = level
        self._types: Ints | None = None
        self._boundaries: set[tuple[bool, ...]] = set()
        self.parameters: Mapping[str, str] = {}

    def frames(self, structures: Structures) -> Frames:
        """Give every atom its species; the first structure of its size is also checked for close contacts.

        Args:
            structures: of one message.

        Returns:
            One frame for each; periodic along every lattice vector that is not zero. Positions are shared, not copied.

        Raises:
            StructureError: no order fits the number of atoms, a species is unknown, atoms are too close, or parameters
                that the model takes are missing.
        """
        n_frames, n_atoms = structures.n_frames, structures.n_atoms
        is_new = self._types is None or len(self._types) != n_atoms
        pbc = np.asarray(structures.cell.any(axis=2))
        types, origin = self._assign(n_atoms, pbc[0]) if is_new or self._types is None else (self._types, "")
        self._watch_boundaries(pbc)
        if is_new:
            self._fparam, self._aparam = self._find_parameters(n_atoms)
        frames = Frames(
            structures.positions.reshape(-1, 3),
            types if n_frames == 1 else np.tile(types, n_frames),
            structures.cell,
            pbc,
            np.arange(n_frames).repeat(n_atoms),
            fparam=None if self._fparam is None else np.tile(self._fparam, (n_frames, 1)),
            aparam=None if self._aparam is None else np.tile(self._aparam, (n_frames, 1)),
        )
        if is_new:
            frames.check(len(self._model.species))
            check_wholes(self._model, frames[0])
            check_contacts(frames[0], self._model, origin)
            self._types = types
        return frames

    def _find_parameters(self, n_atoms: int) -> tuple[Floats | None, Floats | None]:
        """Choose the parameters of a structure, (n_fparam,) and (n_atoms, n_aparam)."""
        try:
            peer = from_init(self.parameters)
        except ConfigError as error:
            raise StructureError(str(error)) from None
        found = resolve(taken_by(self._model), peer, self._given, n_atoms)
        if found[0] is not None:
            origins = [given.origin for given in (peer, self._given) if given.fparam is not None]
            logger.log(
                self._level,
                "%s: parameters of the structures (fparam) are %s, from %s",
                self._name,
                " ".join(f"{p:g}" for p in found[0]),
                origins[0] if origins else "the model's default",
            )
        return found

    def _watch_boundaries(self, pbc: Bools) -> None:
        """Warn once of each kind of boundaries that may be an accident: the cell lost a vector, or later all of them.

        Args:
            pbc: (n_frames, 3).
        """
        kinds = set(map(tuple, pbc.tolist()))
        if kinds <= self._boundaries:
            return
        for kind in sorted(kinds - self._boundaries, reverse=True):
            if any(kind) and not all(kind):
                logger.warning(
                    "%s: the structure is %s, where the lattice vector is zero; if this is not a slab or wire, the "
                    "cell is damaged",
                    self._name,
                    describe_boundaries(kind),
                )
            elif self._boundaries and not any(kind):
                logger.warning("%s: the cell has become zero, and the structure open", self._name)
            self._boundaries.add(kind)

    def _assign(self, n_atoms: int, pbc: Bools) -> tuple[Ints, str]:
        """Choose the order that rules and stretch it over the atoms."""
        try:
            order = self._choose()
        except ConfigError as error:
            raise StructureError(str(error)) from None
        repeats, rest = divmod(n_atoms, len(order.symbols))
        if rest or not repeats:
            raise StructureError(
                f"the peer sent {n_atoms} atoms; expected {len(order.symbols)} or a whole multiple, in the order of "
                f"{order.origin}. Give the order of these atoms with --template FILE, --species 'O H H', or in the "
                "peer's input as <parameters> {template: FILE} </parameters>"
            )
        types = np.tile(order.types(self._model.species), repeats)
        counts = np.bincount(types, minlength=len(self._model.species))
        logger.log(
            self._level,
            "%s: species of %d atoms (%s) are %s%s, from %s; boundaries: %s",
            self._name,
            n_atoms,
            ", ".join(f"{s} {c}" for s, c in zip(self._model.species, counts, strict=True)),
            order.summary(),
            f", {repeats} times" if repeats > 1 else "",
            order.origin,
            describe_boundaries(pbc.tolist()),
        )
        return types, order.origin

    def _choose(self) -> Order:
        """The order of the highest authority."""
        order = order_from_parameters(self.parameters) or self._order
        if order is not None:
            return order
        if self._model.template is not None:
            return Order(tuple(self._model.template), "the model's own template")
        if len(self._model.species) == 1:
            return Order(tuple(self._model.species), "the model's only species")
        raise StructureError(
            f"nothing says which atom is which of {', '.join(self._model.species)}: the model has no template of its "
            "own. Give --template FILE, --species 'O H H', or in the peer's input <parameters> {template: FILE} "
            "</parameters>"
        )


def describe_boundaries(pbc: Sequence[bool]) -> str:
    """Name the boundaries of one structure.

    Args:
        pbc: the three directions, whether periodic.

    Returns:
        `periodic`, `open`, or `open along c`.
    """
    axes = [axis for axis, is_periodic in zip("abc", pbc, strict=True) if not is_periodic]
    if not axes:
        return "periodic"
    return "open" if len(axes) == 3 else f"open along {' and '.join(axes)}"


def check_contacts(frame: Frames, model: ForceModel, origin: str) -> None:
    """Hold the distances of one frame against those of the training set: the smallest, and those of pairs in numbers.

    Args:
        frame: one structure, checked.
        model: with `min_distance` and `crowd_distance`.
        origin: who gave the order of the species, for the message.

    Raises:
        StructureError: a pair is closer than `CLOSEST_SHARE` of what training has seen; or as many as make a crowd are
            closer than any pair there, and than that share of what a crowd has come to.
    """
    known, crowded = model.min_distance, model.crowd_distance
    limit, of_crowds = _limits(known), np.minimum(_limits(crowded), known)
    reach = max(float(limit.max()), float(of_crowds.max()))
    if not reach:
        return
    edges = neighbors.build(frame, reach)
    cause = f"Most likely the atoms are not in the order of {origin}; else look at the cell and at the units"
    _check_closest(frame, edges, model, limit, cause)
    for a, b in np.argwhere(crowd_distance(frame, edges, len(model.species)) < of_crowds)[:1]:
        raise StructureError(
            f"at least {crowd(frame.counts)[0]} pairs {model.species[a]}-{model.species[b]} are closer than "
            f"{of_crowds[a, b]:.3f} Å; in training not one was closer than {known[a, b]:.3f} Å. {cause}"
        )


def _limits(known: Floats) -> Floats:
    """Below which distances a structure is refused, Å; 0 where nothing is known."""
    return np.where(np.isfinite(known), CLOSEST_SHARE * known, 0.0)


def _check_closest(frame: Frames, edges: Edges, model: ForceModel, limit: Floats, cause: str) -> None:
    """Refuse single pairs closer than a limit."""
    known = model.min_distance
    kinds = frame.types[edges.centre], frame.types[edges.neighbour]
    close = np.flatnonzero(edges.distance < limit[kinds])
    if not len(close):
        return
    worst = close[np.argmin(edges.distance[close] / limit[kinds][close])]
    i, j = edges.centre[worst], edges.neighbour[worst]
    a, b = frame.types[i], frame.types[j]
    n_pairs = (len(close) + 1) // 2
    too_close = f"{n_pairs} {'pair is' if n_pairs == 1 else 'pairs are'} too close"
    raise StructureError(
        f"atoms {i} ({model.species[a]}) and {j} ({model.species[b]}) are {edges.distance[worst]:.3f} Å apart; no such "
        f"pair was closer than {known[a, b]:.3f} Å in training, and {too_close}. {cause}"
    )
