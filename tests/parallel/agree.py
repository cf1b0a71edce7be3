"""Run by mpiexec: groups of the first ranks, each size in turn, against one process, and against Bcast and Reduce.

    agree.py springs|charges|w.pt [large]

`large` takes water of up to 12,288 atoms, and no small cases. Models with charges are asked for nothing that is
periodic in some directions only, and not by Bcast and Reduce, which cuts by ghosts alone. Prints a line for each case,
and ends with a mistake where one is found.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from dpserver.engine.wrapped import has_long_range
from dpserver.frames import ForceResult, Frames
from dpserver.parallel.crew import Crew
from dpserver.parallel.mpi import MPIGroup, load_mpi
from dpserver.parallel.plan import Decompose
from dpserver.parallel.ranked import RankedModel
from dpserver.parallel.waiting import Patience
from dpserver.parallel.worker import Worker
from tests import structures
from tests.parallel import broadcast
from tests.ranks import Springs

SIZES = (1, 2, 3, 4, 7, 8)
SIMPLY = (3,)
"""Sizes that Bcast and Reduce are held against too; who waits in these keeps a core busy."""


def crystal(n: int) -> Frames:
    """Copper, face-centred, a little out of place, with every tenth atom of the other kind."""
    unit = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = 3.6 * (grid[:, None] + unit).reshape(-1, 3)
    positions += np.random.default_rng(3).normal(scale=0.05, size=positions.shape)
    return Frames.single(positions, np.arange(len(positions)) % 10 == 0, np.eye(3) * 3.6 * n)


def cases(is_large: bool) -> dict[str, Frames]:
    if is_large:
        return {
            "water 1536": structures.water((8, 8, 8)),
            "water 5184": structures.water((12, 12, 12)),
            "water 12288": structures.water((16, 16, 16)),
            "slab 5376": structures.water((16, 16, 7), structures.SHEAR, (True, True, False)),
            "droplet 5184": structures.water((12, 12, 12), None, (False, False, False)),
            "crystal 5324": crystal(11),
        }
    return {
        "water 192": structures.water((4, 4, 4)),
        "water 1029": structures.water((7, 7, 7)),
        "triclinic": structures.water((4, 5, 4), structures.SHEAR),
        "slab": structures.water((6, 6, 2), structures.SHEAR, (True, True, False)),
        "droplet": structures.water((5, 5, 5), None, (False, False, False)),
        "crystal": crystal(5),
        "beads": Frames.concatenate(structures.water((3, 3, 3), seed=k) for k in range(11)),
        "mixed": Frames.concatenate([structures.water((4, 4, 4)), structures.wire(), structures.slab()]),
    }


def later(frames: Frames, step: int) -> Frames:
    rng = np.random.default_rng(step)
    strain = np.eye(3) + 0.003 * rng.normal(size=(3, 3))
    positions = frames.positions @ strain + rng.normal(scale=0.02 * step, size=frames.positions.shape)
    return Frames(positions, frames.types, frames.cell @ strain, frames.pbc, frames.frame_idx)


def largest_error(found: ForceResult, expected: ForceResult) -> float:
    """Of energies, forces and virials, each relative to the largest of its kind."""
    pairs = [(getattr(found, name), getattr(expected, name)) for name in ("energy", "forces", "virial", "atom_energy")]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def make_model(kind: str) -> Any:
    if kind == "springs":
        return Springs(4.0)
    if kind == "charges":
        from tests.parallel.charged import ChargedSprings

        return ChargedSprings(4.0)
    from dpserver.models import checkpoint

    return checkpoint.load(kind, "cpu", "double", 1)


def compare(n: int, way: str, name: str, worst: float) -> None:
    sys.stdout.write(f"{n} {way} {name}: {worst:.1e}\n")
    assert worst < 1e-10, (n, way, name, worst)


def simply(part: Any, model: Any, given: dict[str, Frames], expected: dict[tuple[str, int], ForceResult]) -> None:
    """Every rank takes part; rank 0 brings the structures, and holds the answers against those of one process."""
    for name, frames in given.items():
        if frames.n_frames == 1:
            found = broadcast.evaluate(part, model, None if part.Get_rank() else later(frames, 2))
            if not part.Get_rank():
                compare(part.Get_size(), "bcast", name, largest_error(found, expected[name, 2]))


def main(kind: str, is_large: bool) -> None:
    model = make_model(kind)
    has_charges = has_long_range(model)
    is_asked = lambda frames: not has_charges or (frames.pbc.all(axis=1) == frames.pbc.any(axis=1)).all()  # noqa: E731
    given = {name: frames for name, frames in cases(is_large).items() if is_asked(frames)}
    if has_charges and not is_large:  # others take the time
        del given["water 192"], given["beads"]
    mpi = load_mpi()
    world = mpi.COMM_WORLD
    rank = world.Get_rank()
    sizes = [size for size in SIZES if size <= world.Get_size()]
    # All at once and before anything else: who is in none of the first groups waits in the first of its own.
    parts = [world.Split(0 if rank < n else mpi.UNDEFINED, rank) for n in sizes]
    expected = {
        (name, step): model.evaluate(later(frames, step))
        for name, frames in (given.items() if not rank else ())
        for step in range(3)
    }
    for n, part in zip(sizes, parts, strict=True):
        if part == mpi.COMM_NULL:
            continue
        Patience().until(part.Ibarrier().Test)  # rank 0 comes late, and MPI's own ways of waiting keep the cores busy
        group = MPIGroup(mpi, part)
        places = group.places()
        if group.rank:
            Worker(group, lambda file: make_model(kind), Patience()).run()
            if n in SIMPLY and not has_charges:
                simply(part, model, given, expected)
            continue
        crew = Crew(group, places, Patience())
        crew.send_model(b"")
        crew.await_model()
        for way in (Decompose.SPACE, Decompose.AUTO) if n in (3, 8) else (Decompose.SPACE,):
            ranked = RankedModel(model, crew, way)
            for name, frames in given.items():
                worst = max(
                    largest_error(ranked.evaluate(later(frames, step)), expected[name, step]) for step in range(3)
                )
                compare(n, str(way), name, worst)
        crew.dismiss()
        if n in SIMPLY and not has_charges:
            simply(part, model, given, expected)


main(sys.argv[1], "large" in sys.argv[2:])
