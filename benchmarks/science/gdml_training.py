"""Train sGDML and GDML models by their own package, in a process of their own: it starts pools, and its logger is loud.

    python -m benchmarks.science.gdml_training frames.xyz model.npz --frames 1000 --sigmas 10 20 30

The kernel width σ is the one of those given whose model of some of the training frames is best at others of them; the
model is then trained on all. Seconds and choices are printed as JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

_TRIED = 200
"""Frames that the widths are tried with, and as many to tell which is best."""


def dataset(path: Path) -> dict[str, Any]:
    """The frames of an extended XYZ file as the package wants them; Å and eV, open boundaries."""
    frames = ase.io.read(path, ":")
    found: dict[str, Any] = {
        "type": "d",
        "code_version": import_module("sgdml").__version__,
        "name": path.stem,
        "theory": "unknown",
        "R": np.array([f.positions for f in frames]),
        "z": frames[0].numbers,
        "E": np.array([f.get_potential_energy() for f in frames]),
        "F": np.array([f.get_forces() for f in frames]),
        "r_unit": "Ang",
        "e_unit": "eV",
    }
    for name in "EF":
        found |= {f"{name}_{what}": getattr(found[name], what)() for what in ("min", "max", "mean", "var")}
    found["md5"] = import_module("sgdml.utils.io").dataset_md5(found)
    return {name: np.asarray(value) for name, value in found.items()}


def some(data: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """A data set of some of the frames."""
    found = {**data, **{name: data[name][chosen] for name in "REF"}}
    return {**found, "md5": np.asarray(import_module("sgdml.utils.io").dataset_md5(found))}


def trained(trainer: Any, data: dict[str, Any], sigma: int, *, is_symmetric: bool, perms: Any = None) -> dict[str, Any]:
    """A model of all frames of a data set."""
    n = len(data["E"])
    other = some(data, slice(0, 1))
    task = trainer.create_task(data, n, other, 1, sigma, use_sym=is_symmetric, perms=perms)
    return dict(trainer.train(task))


def force_error(model: dict[str, Any], data: dict[str, Any]) -> float:
    """Mean absolute error of forces, eV/Å."""
    predictor = import_module("sgdml.predict").GDMLPredict(model, max_processes=1)
    _, forces = predictor.predict(data["R"].reshape(len(data["R"]), -1))
    return float(np.abs(forces - data["F"].reshape(forces.shape)).mean())


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--sigmas", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gdml", action="store_true", help="without the symmetries")
    options = parser.parse_args()
    vars(np).setdefault("in1d", np.isin)  # sgdml 1.0.3 asks for the old name, which numpy 2.4 has dropped
    rng = np.random.default_rng(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - the package draws from there
    data = dataset(options.source)
    order = rng.permutation(len(data["E"]))[: options.frames]
    trainer = import_module("sgdml.train").GDMLTrain(max_processes=1)
    began = time.perf_counter()
    n_tried = min(_TRIED, len(order) // 2)
    few, rest = some(data, order[:n_tried]), some(data, order[n_tried : 2 * n_tried])
    perms, errors = None, {}
    for sigma in options.sigmas:
        model = trained(trainer, few, sigma, is_symmetric=not options.gdml, perms=perms)
        perms = model["perms"]
        errors[sigma] = force_error(model, rest)
    best = min(errors, key=lambda sigma: errors[sigma])
    chosen = time.perf_counter()
    model = trained(trainer, some(data, order), best, is_symmetric=not options.gdml, perms=perms)
    np.savez_compressed(options.model, **model)
    print(json.dumps({
        "sigma": best,
        "tried": {str(sigma): round(1e3 * error, 2) for sigma, error in errors.items()},
        "permutations": len(model["perms"]),
        "solver": str(model["solver_name"]),
        "choice_seconds": round(chosen - began, 1),
        "training_seconds": round(time.perf_counter() - chosen, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
