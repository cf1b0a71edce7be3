"""What a rank refuses, as if one process had seen the whole batch: which structure, and which of its atoms."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final

from dpserver.engine.runner import ForceModel
from dpserver.errors import AbandonedError, StructureError
from dpserver.frames import Frames
from dpserver.parallel.shares import Layout

logger = logging.getLogger(__name__)

UNKNOWN: Final = -1

_ATOMS: Final = re.compile(r"\b(atoms?) (\d+)(?:( and )(\d+))?")


def find_culprit(model: ForceModel, share: Callable[[], Frames], error: StructureError) -> tuple[int, str]:
    """Find the structure of a batch that is refused, by evaluating one after the other, parts without the others.

    It raises nothing: a refusal is an answer, known already, and whoever asked waits for it.

    Args:
        model: has refused the batch.
        share: makes the batch.
        error: of the batch.

    Returns:
        Number of the structure, `UNKNOWN` where each by itself is answered or the search fails; and what it is refused
        for.
    """
    try:
        frames = share()
        if frames.n_frames == 1:
            return 0, str(error)
        for number, frame in enumerate(frames):
            try:
                model.evaluate(frame)
            except StructureError as refusal:
                return number, str(refusal)
            except AbandonedError:  # a part that by itself could be evaluated
                continue
    except Exception as failure:
        logger.debug("no looking for the structure that was refused", exc_info=failure)
    return UNKNOWN, str(error)


def retell(text: str, layout: Layout, rank: int, number: int) -> str:
    """Say a refusal with the numbers of the whole batch.

    Args:
        text: what a rank says of one structure of its share.
        layout: of the batch.
        rank: whose share.
        number: of the structure in the share.
    """
    share = layout.shares[rank]
    if share is None or number == UNKNOWN:
        return text
    k = next(k for k in range(len(share.pieces)) if share.frames[k + 1] > number)
    piece = share.pieces[k]
    frame = piece.start + number - share.frames[k]
    if piece.part is not None:
        index = layout.cuts[frame].parts[piece.part].index

        def of_the_whole(found: re.Match[str]) -> str:
            word, first, between, second = found.groups()
            numbers = [str(index[int(n)]) if int(n) < len(index) else n for n in (first, second) if n is not None]
            return f"{word} " + (between or "").join(numbers)

        text = _ATOMS.sub(of_the_whole, text)
    return text if len(layout.offsets) == 2 else f"frame {frame}: {text}"
