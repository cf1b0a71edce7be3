"""The model that rank 0 serves: it spreads what it is asked over all ranks, itself included."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from dpserver.engine.runner import ForceModel, is_out_of_memory
from dpserver.engine.wrapped import Wrapped, has_long_range, is_cuttable, why_whole
from dpserver.errors import AbandonedError, ConfigError, DeviceError, DPServerError, StructureError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.parallel.balance import Balance
from dpserver.parallel.crew import Crew
from dpserver.parallel.cuts import Cuts
from dpserver.parallel.domain import SKIN
from dpserver.parallel.exchange import MOST_FORMS, Command, Recent, Status, describe
from dpserver.parallel.experience import Experience
from dpserver.parallel.meeting import Meeting, MeetingLostError, evaluate
from dpserver.parallel.packing import Contents, unpack
from dpserver.parallel.plan import Decompose, Plan, Sizes, choose, compare
from dpserver.parallel.refusals import find_culprit, retell
from dpserver.parallel.shares import Layout, Share

logger = logging.getLogger(__name__)

_VOLUME: Final = 10.0
"""Å³ that an atom is taken to fill where a structure is open."""

_RETRY: Final = tuple(10**k for k in range(2, 7))
"""After so many evaluations of a kind parts that meet are tried again, where it has had none: none were measured."""

_REPLAN: Final = (3, 10, *(n + more for n in _RETRY for more in (0, 10)))
"""After so many evaluations of a kind it is planned again, with what was measured meanwhile."""

_MOST_KINDS: Final = 64


@dataclass
class Timings:
    """Where the time of the evaluations has gone, in seconds.

    Attributes:
        n: evaluations.
        plan: finding who evaluates what; decompositions are made here.
        scatter: sending it.
        compute: the share of rank 0.
        wait: for the others, after that.
        gather: putting the answers together.
        each: the share of each rank, (n_ranks,).
    """

    n: int = 0
    plan: float = 0.0
    scatter: float = 0.0
    compute: float = 0.0
    wait: float = 0.0
    gather: float = 0.0
    each: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class _Kind:
    """Batches of the same sizes, and how they are spread."""

    plan: Plan
    n_evaluations: int = 0


class RankedModel(Wrapped):
    """Evaluates over all ranks; a `ForceModel`, for rank 0.

    Args:
        model: of rank 0.
        crew: the others, who have loaded the same one.
        decompose: how structures are spread; whole ones only where the model does not say by `can_cut` that it can be
            evaluated in parts.
        skin: how much further than the cutoff parts reach, Å.

    Attributes:
        timings: where the time has gone.
        choice: how the last batch was spread, in words.

    Raises:
        ConfigError: structures are to be cut, and the model has terms that are not local.
    """

    def __init__(
        self, model: ForceModel, crew: Crew, decompose: Decompose = Decompose.AUTO, skin: float = SKIN
    ) -> None:
        super().__init__(model)
        self._crew = crew
        check_decompose(decompose, model)
        self._can_cut = is_cuttable(model)
        self._decompose = decompose if self._can_cut else Decompose.BEADS
        self._reach = model.rcut + skin
        self._cuts = Cuts(model.rcut, skin)
        self._balance = Balance(self._cuts)
        self._experience = Experience(parts_meet=has_long_range(model))
        self._is_warming_up = False
        self._kinds: OrderedDict[tuple[int, ...], _Kind] = OrderedDict()
        self._layouts: OrderedDict[Hashable, Layout] = OrderedDict()
        self._n_layouts = 0
        self._said: set[tuple[str, str]] = set()
        self._sent: dict[int, Recent[None]] = {rank: Recent() for rank in crew.channels}
        self._own: Floats = np.empty(0)
        self.timings = Timings(each=np.zeros(crew.size))
        self.choice = "nothing evaluated yet"

    def warm_up(self) -> None:
        """Make now what the first evaluation would have to, in all ranks.

        The atoms for that are no structure that a model has to be for: their charges need not add up.
        """
        n = 2 * self._crew.size
        atoms = Frames.single(np.arange(n)[:, None] * [self.rcut / 2, 0.0, 0.0], np.zeros(n, dtype=np.int64))
        decompose, self._decompose = self._decompose, Decompose.SPACE if self._can_cut else self._decompose
        self._is_warming_up = True
        with contextlib.suppress(StructureError):  # the model may take parameters, or more neighbours
            self._evaluate(atoms)
        self._decompose, self._is_warming_up = decompose, False
        self._kinds.clear()
        self._said.clear()
        self.timings = Timings(each=np.zeros(self._crew.size))
        self.choice = "nothing evaluated yet"

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch, by all ranks together.

        Args:
            frames: structures, of any sizes, without ghosts; not changed.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
            MemoryError: the memory of a rank is full.
            DeviceError: a rank has failed or is gone.
            ConfigError: the structures have ghosts.
        """
        frames.check(len(self.species))
        self.check_wholes(frames)
        if not frames.n_frames:
            return self._model.evaluate(frames)
        if frames.is_ghost is not None and frames.is_ghost.any():
            raise ConfigError("ranks are given whole structures, and this one has ghosts")
        return self._evaluate(frames)

    def _evaluate(self, frames: Frames) -> ForceResult:
        """The same for frames that have been looked at."""
        marks = [time.perf_counter()]
        layout, kind = self._layout(frames)
        marks.append(time.perf_counter())
        meeting = self._meet(layout)
        try:
            self._scatter(layout, frames)
        except DeviceError:
            raise
        except Exception as error:  # some have been asked and some have not
            self._crew.blame(error)
            raise DeviceError(f"{self._crew.places[0]} failed to share structures out: {describe(error)}") from error
        marks.append(time.perf_counter())
        results: list[ForceResult | None] = [None] * self._crew.size
        failure: Exception | None = None
        errors: list[Exception] = []
        seconds, waits = np.zeros(self._crew.size), np.zeros(self._crew.size)
        try:
            results[0] = self._compute(layout, meeting)
        except MeetingLostError as error:
            if isinstance(error.cause, DeviceError):
                raise error.cause from None
            self._crew.blame(error.cause)
            raise DeviceError(f"{self._crew.places[0]} lost the others: {describe(error.cause)}") from error
        except Exception as error:  # the others are at work, and must be listened to first
            failure = error
        marks.append(time.perf_counter())
        waits[0] = 0.0 if meeting is None else meeting.waited
        seconds[0] = marks[-1] - marks[-2] - waits[0]
        try:
            for rank, share in enumerate(layout.shares):
                if rank and share is not None:
                    results[rank], seconds[rank], waits[rank] = self._receive(rank, share, layout, errors)
        except DeviceError:
            raise
        except Exception as error:  # some have been listened to and some have not
            self._crew.blame(error)
            raise DeviceError(f"{self._crew.places[0]} failed to take answers in: {describe(error)}") from error
        marks.append(time.perf_counter())
        if failure is not None:
            errors.insert(0, self._named(failure, layout, meeting))
        if errors:
            raise _worst(errors)
        found = layout.collect(frames, results)
        marks.append(time.perf_counter())
        self._note(marks, seconds, waits, layout, kind)
        if frames.n_frames == 1 and layout.cuts:
            self._balance.note(frames, layout.cuts[0], seconds[list(kind.plan.ranks[0])])
        return found

    def _layout(self, frames: Frames) -> tuple[Layout, _Kind]:
        """Who evaluates what."""
        counts = tuple(frames.counts.tolist())
        kind = self._plan(counts, frames)
        cut = [f for f, ranks in enumerate(kind.plan.ranks) if len(ranks) > 1]
        cuts = dict(
            zip(cut, self._cuts.find([frames[f] for f in cut], [len(kind.plan.ranks[f]) for f in cut]), strict=True)
        )
        widths = [None if p is None else p.shape[1] for p in (frames.fparam, frames.aparam)]
        ranks = kind.plan.ranks
        if self.has_long_range:  # who has an empty part would not know where the others meet
            empty = [f for f, c in cuts.items() if not c.n_owned.all()]
            if empty:
                alone = {f: (ranks[f][k % len(ranks[f])],) for k, f in enumerate(empty)}
                ranks = tuple(alone.get(f, mine) for f, mine in enumerate(ranks))
                cuts = {f: c for f, c in cuts.items() if f not in alone}
                self.choice = str(replace(kind.plan, ranks=ranks))
        names = counts, ranks, tuple(id(c) for c in cuts.values()), tuple(widths)
        key = (*names, frames.types.tobytes(), frames.pbc.tobytes())
        layout = self._layouts.get(key)
        if layout is None:
            n, has_wholes = self._crew.size, self.has_long_range
            layout = Layout.build(self._n_layouts, frames, ranks, cuts, n, has_wholes=has_wholes)
            self._n_layouts += 1
            self._layouts[key] = layout
            if len(self._layouts) > MOST_FORMS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return layout, kind

    def _plan(self, counts: tuple[int, ...], frames: Frames) -> _Kind:
        """How batches of these sizes are spread."""
        kind = self._kinds.get(counts)
        if kind is None or kind.n_evaluations in _REPLAN:
            if kind is not None and kind.n_evaluations in _RETRY and kind.plan.n_parts == 1:
                self._experience.forget_meetings()
            sizes = Sizes(counts, _volumes(frames), self._reach)
            plan = choose(sizes, self._crew.size, self._experience.speeds, self._decompose)
            if not self._is_warming_up and (kind is None or plan.ranks != kind.plan.ranks):
                self._say(sizes, plan)
            kind = self._kinds[counts] = _Kind(plan, 0 if kind is None else kind.n_evaluations)
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(counts)
        kind.n_evaluations += 1
        self.choice = str(kind.plan)
        return kind

    def _say(self, sizes: Sizes, plan: Plan) -> None:
        """Tell how such structures are spread, and why; once for each size and way, however many come at a time."""
        n, counts = len(sizes.counts), sizes.counts
        atoms = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        is_new = (atoms, str(plan)) not in self._said
        self._said.add((atoms, str(plan)))
        why = f"as --decompose {self._decompose} asks for"
        if self._decompose is Decompose.AUTO:
            pure = compare(sizes, self._crew.size, self._experience.speeds)
            why = (
                f"{1e3 * plan.seconds:.3g} ms expected, {1e3 * pure[Decompose.BEADS]:.3g} with whole structures and "
                f"{1e3 * pure[Decompose.SPACE]:.3g} with each in {self._crew.size} parts"
            )
        what = f"{n} structure{'s' * (n != 1)} of {atoms} atoms"
        logger.log(logging.INFO if is_new else logging.DEBUG, "%s: %s (%s)", what, plan, why)

    def _scatter(self, layout: Layout, frames: Frames) -> None:
        """Send all that have a share theirs, and see it through: MPI does nothing while we compute.

        While they wake up, the share of this rank is written.
        """
        for rank, channel in self._crew.channels.items():
            share = layout.shares[rank]
            if share is None:
                continue
            known = self._sent[rank]
            if layout.number in known:
                known.use(layout.number)
            else:
                known.add(layout.number, None)
                channel.send([Command.FORM, layout.number], share.form.encode())
            body = channel.room(share.form.n_numbers)
            layout.write(frames, rank, body)
            channel.send([Command.STEP, layout.number], body)
        if (mine := layout.shares[0]) is not None:
            if len(self._own) < mine.form.n_numbers:
                self._own = np.empty(mine.form.n_numbers)
            layout.write(frames, 0, self._own)
        for channel in self._crew.channels.values():
            channel.flush()

    def _meet(self, layout: Layout) -> Meeting | None:
        """The meeting with those that have the other parts of this rank's structures; None where it has none of any."""
        share = layout.shares[0]
        return None if share is None or share.form.wholes is None else self._crew.meet(share.form.wholes.ranks)

    def _compute(self, layout: Layout, meeting: Meeting | None) -> ForceResult | None:
        """Evaluate the share of this rank."""
        share = layout.shares[0]
        return None if share is None else evaluate(self._model, partial(share.form.frames, self._own, meeting), meeting)

    def _receive(
        self, rank: int, share: Share, layout: Layout, errors: list[Exception]
    ) -> tuple[ForceResult | None, float, float]:
        """Wait for the answer of a rank, for the seconds it took, and for those it has waited for other parts."""
        channel = self._crew.channels[rank]
        status, took, n_members, responses, waited, size = channel.receive_head()
        if status != Status.DONE:
            error = self._crew.error(rank, Status(status), size)
            is_refusal = isinstance(error, StructureError)
            errors.append(StructureError(retell(str(error), layout, rank, took)) if is_refusal else error)
            return None, 0.0, 0.0
        contents = Contents(n_members, responses)
        return unpack(channel.receive_body(size), share.form, contents), 1e-9 * took, 1e-9 * waited

    def _named(self, error: Exception, layout: Layout, meeting: Meeting | None) -> Exception:
        """What this rank has met itself, as if another had."""
        share = layout.shares[0]
        if isinstance(error, StructureError) and share is not None:
            number, text = find_culprit(self._model, partial(share.form.frames, self._own, meeting), error)
            return StructureError(retell(text, layout, 0, number))
        if isinstance(error, DPServerError) or is_out_of_memory(error):
            return error
        logger.debug("an evaluation failed", exc_info=error)
        return DeviceError(f"{self._crew.places[0]} failed: {describe(error)}")

    def _note(self, marks: Sequence[float], seconds: Floats, waits: Floats, layout: Layout, kind: _Kind) -> None:
        """Learn from an evaluation."""
        plan, scatter, compute, wait, gather = np.diff(marks)
        t = self.timings
        t.n += 1
        t.plan, t.scatter, t.compute = t.plan + plan, t.scatter + scatter, t.compute + compute
        t.wait, t.gather = t.wait + wait, t.gather + gather
        t.each += seconds
        if kind.n_evaluations > 1:  # the first has made neighbour lists
            self._experience.note(layout.shares, seconds, waits, scatter + gather)


def check_decompose(decompose: Decompose, model: object) -> None:
    """Refuse to cut structures for a model that can only be given whole ones.

    Raises:
        ConfigError: they were to be cut.
    """
    if decompose is Decompose.SPACE and not is_cuttable(model):
        raise ConfigError(
            f"--decompose space cuts structures, and this model cannot be evaluated in parts: {why_whole(model)}; take "
            "--decompose beads or auto"
        )


def _worst(errors: Sequence[Exception]) -> Exception:
    """The error that counts: a lost rank before all, full memory before a structure that is refused, causes at all."""
    for kind in (DeviceError, MemoryError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return next((error for error in errors if not isinstance(error, AbandonedError)), errors[0])


def _volumes(frames: Frames) -> tuple[float, ...]:
    """What structures fill, about, Å³."""
    volumes = np.abs(np.linalg.det(frames.cell))
    guess = _VOLUME * frames.counts
    return tuple(np.where(frames.pbc.all(axis=1), volumes, guess).tolist())
