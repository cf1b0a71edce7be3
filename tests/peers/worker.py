"""DeePMD-kit at work: run by a Python that has it, it answers requests until its input ends.

One line of JSON is a request, {"do": NAME, ...}, and one line of JSON, {"error": TEXT or null}, the answer; arrays go
through `.npz` files. What DeePMD-kit prints goes to the standard error.
"""

import copy
import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import training_tasks


def convert(source: str, target: str) -> None:
    """A file of one backend into one of another, as `dp convert-backend`."""
    from deepmd.entrypoints.convert_backend import convert_backend

    convert_backend(INPUT=source, OUTPUT=target, atomic_virial=False)


def evaluate(model: str, frames: str, answer: str) -> None:
    """Energy, forces, virial and atom_energy of each frame, one after the other, by `DeepPot.eval`."""
    from deepmd.infer import DeepPot

    potential, found = DeepPot(model), []
    with np.load(frames) as z:
        for k, cell in enumerate(z["cell"]):
            is_here = z["frame_idx"] == k
            box = cell.reshape(1, 9) if z["pbc"][k].all() else None
            given = {name: z[name][k : k + 1] for name in ("fparam",) if name in z}
            given |= {name: z[name][is_here].reshape(1, -1) for name in ("aparam",) if name in z}
            x = z["positions"][is_here].reshape(1, -1)
            found.append(potential.eval(x, box, z["types"][is_here], atomic=True, **given)[:4])
    np.savez(
        answer,
        energy=np.concatenate([e.ravel() for e, _, _, _ in found]),
        forces=np.concatenate([f[0] for _, f, _, _ in found]),
        virial=np.concatenate([v.reshape(1, 3, 3) for _, _, v, _ in found]),
        atom_energy=np.concatenate([ae.ravel() for _, _, _, ae in found]),
    )


def evaluate_tensors(model: str, frames: str, answer: str, kind: str) -> None:
    """What each atom adds to a dipole or polarizability, by `DeepDipole.eval` or `DeepPolar.eval`."""
    from deepmd.infer.deep_dipole import DeepDipole
    from deepmd.infer.deep_polar import DeepPolar

    tensors, found = {"dipole": DeepDipole, "polar": DeepPolar}[kind](model), []
    with np.load(frames) as z:
        for k, cell in enumerate(z["cell"]):
            is_here = z["frame_idx"] == k
            box = cell.reshape(1, 9) if z["pbc"][k].all() else None
            x = z["positions"][is_here].reshape(1, -1)
            found.append(tensors.eval(x, box, z["types"][is_here], atomic=True).reshape(is_here.sum(), -1))
    np.savez(answer, atoms=np.concatenate(found))


def make(parameters: dict, path: str, seed: int = 5) -> None:
    """A model of the PyTorch backend with random weights, statistics and biases, as `.pt`, `.pth`, `.dp` or `.yaml`.

    Statistics are the same for all slots of a centre, as those of training are.
    """
    import torch
    from deepmd.dpmodel.utils.serialization import save_dp_model
    from deepmd.pt.model.model import get_model
    from deepmd.pt.train.wrapper import ModelWrapper
    from deepmd.pt.utils.serialization import deserialize_to_file, serialize_from_file

    torch.manual_seed(seed)
    model = get_model(copy.deepcopy(parameters))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith(("mean", "stddev")) and tensor.ndim == 3:
                n_types, _, n_columns = tensor.shape
                radial, angular = (0.02, 0.05), (0.0, 0.0)
                if name.endswith("stddev"):
                    radial, angular = (0.1, 0.2), (0.05, 0.1)
                per_centre = np.zeros((n_types, 1, n_columns))
                per_centre[:, 0, 0] = rng.uniform(*radial, n_types)
                per_centre[:, 0, 1:] = rng.uniform(*angular, n_types)[:, None]
                # With an average, se_atten makes the energy depend on the order of the atoms: only where that is asked.
                given = parameters["descriptor"].get("set_davg_zero")
                is_zero = given or (".se_atten." in name and given is not False)
                if not (is_zero and name.endswith("mean")):
                    tensor[:] = torch.tensor(per_centre)
            elif name.endswith(("param_avg", "param_inv_std", "case_embd")):
                tensor[:] = torch.tensor(rng.uniform(0.5, 1.5, tuple(tensor.shape)))
            elif name.endswith("out_bias"):
                tensor[:] = torch.tensor(rng.uniform(-3, 3, tuple(tensor.shape)))
    model.min_nbor_dist = torch.tensor(0.8)
    checkpoint = str(Path(path).with_suffix(".pt"))
    torch.save({"model": ModelWrapper(model, model_params=copy.deepcopy(parameters)).state_dict()}, checkpoint)
    if path.endswith((".dp", ".yaml")):
        save_dp_model(path, serialize_from_file(checkpoint))
    elif path.endswith(".pth"):
        deserialize_to_file(path, serialize_from_file(checkpoint))


def compress(source: str, target: str) -> None:
    """A `.dp` with tables of its embedding nets: a `.pth` of the PyTorch backend, or a `.dp` of the neutral one."""
    import torch
    from deepmd.dpmodel.model.base_model import BaseModel as NeutralModel
    from deepmd.dpmodel.utils.serialization import load_dp_model, save_dp_model
    from deepmd.pt.model.model.model import BaseModel as TorchModel

    tree = load_dp_model(source)
    is_neutral = target.endswith(".dp")
    model = (NeutralModel if is_neutral else TorchModel).deserialize(tree["model"])
    model.min_nbor_dist = 0.8 if is_neutral else torch.tensor(0.8)
    model.enable_compression(5, 0.01, 0.1, -1)
    if is_neutral:
        save_dp_model(target, {**tree, "model": model.serialize()})
    else:
        model.model_def_script = json.dumps(tree["model_def_script"])
        torch.jit.save(torch.jit.script(model), target)


def read_data(path: str, types: list, labels: dict, answer: str) -> None:
    """A data set as DeePMD-kit reads it; labels are their widths and whether there is one for each atom."""
    from deepmd.utils.data import DeepmdData

    data = DeepmdData(path, type_map=types, sort_atoms=False, shuffle_test=False)
    for name, (width, is_atomic) in labels.items():
        data.add(name, width, atomic=is_atomic, high_prec=True)
    np.savez(answer, pbc=data.pbc, **data.get_test())


def read_lmdb(path: str, types: list, answer: str) -> None:
    """The same of an LMDB data set, frame by frame."""
    from deepmd.dpmodel.utils.lmdb_data import LmdbDataReader

    reader = LmdbDataReader(path, types, batch_size=1)
    names = ("coord", "atype", "energy", "force")
    np.savez(answer, **{f"{name}_{k}": reader[k][name] for k in range(len(reader)) for name in names})


def find_systems(path: str, patterns: list | None, answer: str) -> None:
    """The systems below a directory."""
    from deepmd.utils.data_system import process_systems

    np.savez(answer, systems=np.array(process_systems(path, patterns)))


def test(log: str, **options: object) -> None:
    """`dp test`; what it says goes to a file."""
    import logging

    from deepmd.entrypoints.test import test

    handler, logger = logging.FileHandler(log), logging.getLogger("deepmd")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        test(**{"datafile": None, "rand_seed": None, "shuffle_test": False, "atomic": False, "numb_test": 0, **options})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


TASKS = {
    "compress": compress,
    "convert": convert,
    "evaluate": evaluate,
    "evaluate_tensors": evaluate_tensors,
    "find_systems": find_systems,
    "make": make,
    "read_data": read_data,
    "read_lmdb": read_lmdb,
    "test": test,
    **training_tasks.TASKS,
}


def main() -> None:
    """Serve requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        error = None
        try:
            TASKS[request.pop("do")](**request)
        except Exception:
            error = traceback.format_exc()
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
