"""Whatever dpdata reads: the output of VASP, CP2K, Gaussian and many others; needs the extra `dpdata`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import DataError
from dpserver.frames import Floats, Frames
from dpserver.train.formats.common import Contents, merge, species_idx
from dpserver.train.labels import FIELDS, LABELS, PARAMETERS

_LABELS: Final = {stem: name for name, field in {**LABELS, **PARAMETERS}.items() for stem in field.files}
"""What DeePMD-kit's name of a quantity is here."""


def read_foreign(kind: str, path: Path, species: tuple[str, ...]) -> Contents:
    """Read the output of another code.

    Args:
        kind: dpdata's name of the format, such as `vasp/outcar`.
        path: file or directory.
        species: names of the model's types.

    Raises:
        DataError: dpdata is not installed, does not know the format, cannot read the file, or finds no labels in it.
    """
    try:
        import dpdata
        from dpdata.format import Format
    except ImportError:
        raise DataError(f"reading {kind}:{path} needs dpdata: pip install 'dpserver[dpdata]'") from None
    known = sorted(Format.get_formats())
    if kind not in known:
        raise DataError(f"{kind}:{path}: dpdata knows no format {kind}; {_similar(kind, known)}")
    if not path.exists():
        raise DataError(f"the data set {path} does not exist")
    try:
        systems = _systems(dpdata, kind, str(path))
    except NotImplementedError:
        raise DataError(f"{kind}:{path}: dpdata reads no energies from this format, only structures") from None
    except Exception as error:  # dpdata raises whatever its parsers happen to raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"dpdata cannot read {path} as {kind}: {reason[:300]}") from None
    parts = [_contents(s, species, f"{kind}:{path}") for s in systems if len(s)]
    if not parts:
        raise DataError(f"{kind}:{path}: dpdata finds no frame with an energy in it; has the calculation converged?")
    return merge(parts, f"{kind}:{path}")


def _similar(kind: str, known: list[str]) -> str:
    """The formats that may have been meant, or all."""
    close = difflib.get_close_matches(kind.lower(), known, n=5, cutoff=0.5)
    close += [name for name in known if kind.lower() in name and name not in close]
    return f"did you mean {', '.join(close[:6])}?" if close else f"it knows {', '.join(known)}"


def _systems(dpdata: Any, kind: str, path: str) -> list[Any]:
    """The labelled systems of a file.

    Some formats hold many systems; of these dpdata.LabeledSystem would read the first, and say nothing of the others.
    """
    from dpdata.format import Format

    known = Format.get_formats()[kind]
    if known.from_multi_systems is not Format.from_multi_systems:
        one = known()
        found = [dpdata.LabeledSystem().from_fmt_obj(one, part) for part in one.from_multi_systems(path)]
        if found:
            return found
    return [dpdata.LabeledSystem(path, fmt=kind)]


def _contents(system: Any, species: tuple[str, ...], name: str) -> Contents:
    """The numbers of a dpdata.LabeledSystem."""
    data = system.data
    types = species_idx([data["atom_names"][t] for t in data["atom_types"]], species, name)
    n_frames, n_atoms = len(data["coords"]), len(types)
    is_open = bool(data.get("nopbc", False))
    arrays: dict[str, Floats] = {}
    for dtype in system.DTYPES:
        label = _LABELS.get(dtype.deepmd_name)
        if label is None or dtype.name not in data:
            continue
        rows = n_frames * n_atoms if FIELDS[label].is_atomic else n_frames
        arrays[label] = np.asarray(data[dtype.name], dtype=np.float64).reshape(rows, *FIELDS[label].shape)
    frames = Frames(
        np.asarray(data["coords"], dtype=np.float64).reshape(-1, 3),
        np.tile(types, n_frames),
        np.zeros((n_frames, 3, 3)) if is_open else np.asarray(data["cells"], dtype=np.float64),
        np.full((n_frames, 3), not is_open),
        np.repeat(np.arange(n_frames), n_atoms),
        fparam=arrays.pop("fparam", None),
        aparam=arrays.pop("aparam", None),
    )
    return Contents(frames, arrays)
