"""Write the small models of this folder with DeePMD-kit 3.2.0, and what it answers for them.

Run with a Python that has DeePMD-kit, PyTorch and TensorFlow: `python make.py`. Weights are random, no data are needed.
To keep the files small, what no reader of them looks at is left out: the code of the TorchScript archives, and all of
the graphs but their constants. `q.pb` alone is trained, for two steps on noise: only then has a graph of
polarizabilities its scale and shift.
"""

import copy
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SMOOTH = {
    "type": "se_e2_a", "sel": [16, 24], "rcut": 4.0, "rcut_smth": 0.75, "neuron": [3, 4], "axis_neuron": 2, "seed": 1,
    "precision": "float64", "type_one_side": True, "resnet_dt": False,
}  # fmt: skip
NET = {"neuron": [5, 5], "seed": 2, "precision": "float64"}
MODELS = {
    "e": {"fitting_net": {**NET, "type": "ener", "numb_fparam": 2, "numb_aparam": 1, "atom_ener": [-1.0, None]}},
    "d": {"fitting_net": {**NET, "type": "dipole"}},
    "s": {"fitting_net": {**NET, "type": "dipole", "numb_fparam": 1}, "atom_exclude_types": [1]},
    "p": {"fitting_net": {**NET, "type": "polar", "scale": [1.5, 0.7]}},
    "m": {"fitting_net": {**NET, "type": "polar", "fit_diag": False, "scale": 0.5}, "atom_exclude_types": [0]},
    "c": {"fitting_net": {**NET, "type": "ener", "neuron": [], "dim_case_embd": 2}},
}
"""Parameters and vacuum; dipoles, of all atoms and of some; polarizabilities; a linear net with a case embedding."""
GRAPHS = ("e", "d")
TRAINED = {
    "type_map": ["O", "H"],
    "descriptor": SMOOTH,
    "fitting_net": {**NET, "type": "polar", "fit_diag": False, "scale": [1.5, 0.7], "sel_type": [1]},
}


def random_model(parameters):
    """A model of the PyTorch backend with statistics, parameters and biases that are not trivial."""
    import torch
    from deepmd.pt.model.model import get_model

    model = get_model(copy.deepcopy(parameters))
    rng = np.random.default_rng(5)
    mean, deviation = np.zeros((2, 1, 4)), np.zeros((2, 1, 4))
    mean[:, 0, 0], deviation[:, 0, 0] = rng.uniform(0.02, 0.05, 2), rng.uniform(0.1, 0.2, 2)
    deviation[:, 0, 1:] = rng.uniform(0.05, 0.1, (2, 1))
    for name, tensor in model.named_buffers():
        if name.endswith("sea.mean"):
            tensor[:] = torch.tensor(mean)
        elif name.endswith("sea.stddev"):
            tensor[:] = torch.tensor(deviation)
        elif name.endswith("bias_atom_e") and parameters["fitting_net"]["type"] == "dipole":
            continue  # converting to a graph forgets it, and training leaves it at 0
        elif name.endswith(("param_avg", "param_inv_std", "case_embd", "bias_atom_e", "out_bias")):
            tensor[:] = torch.tensor(rng.uniform(0.5, 1.5, tuple(tensor.shape)))
    return model


def write_torch():
    """The `.dp`, `.pt` and `.pth` files."""
    import torch
    from deepmd.dpmodel.utils.serialization import save_dp_model
    from deepmd.pt.train.wrapper import ModelWrapper
    from deepmd.pt.utils.serialization import deserialize_to_file, serialize_from_file

    for name, given in MODELS.items():
        parameters = {"type_map": ["O", "H"], "descriptor": SMOOTH, **given}
        state = ModelWrapper(random_model(parameters), model_params=copy.deepcopy(parameters)).state_dict()
        torch.save({"model": state}, HERE / f"{name}.pt")
        tree = serialize_from_file(str(HERE / f"{name}.pt"))
        with tempfile.TemporaryDirectory() as folder:
            deserialize_to_file(f"{folder}/{name}.pth", copy.deepcopy(tree))
            with zipfile.ZipFile(f"{folder}/{name}.pth") as whole, zipfile.ZipFile(HERE / f"{name}.pth", "w") as part:
                for entry in whole.infolist():
                    if "/code/" not in entry.filename:
                        part.writestr(entry.filename, whole.read(entry))
            answer(name, f"{folder}/{name}.pth")
        save_dp_model(str(HERE / f"{name}.dp"), copy.deepcopy(tree))


def write_graphs():
    """The `.pb` files that are converted."""
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.tf.utils.serialization import deserialize_to_file

    for name in GRAPHS:
        with tempfile.TemporaryDirectory() as folder:
            deserialize_to_file(f"{folder}/{name}.pb", load_dp_model(str(HERE / f"{name}.dp")))
            keep_constants(Path(f"{folder}/{name}.pb"), HERE / f"{name}.pb")


def write_trained():
    """The `.pb` file that is trained."""
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data" / "set.000"
        data.mkdir(parents=True)
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.5
        np.save(data / "coord.npy", (grid + rng.normal(scale=0.1, size=(4, 8, 3))).reshape(4, -1))
        np.save(data / "box.npy", np.tile(5 * np.eye(3).ravel(), (4, 1)))
        alpha = rng.normal(scale=0.1, size=(4, 3, 3)) + 6 * np.eye(3)
        np.save(data / "polarizability.npy", (alpha + alpha.transpose(0, 2, 1)).reshape(4, 9))
        (data.parent / "type.raw").write_text("0\n1\n1\n0\n1\n1\n0\n1\n")
        (data.parent / "type_map.raw").write_text("O\nH\n")
        systems = {"systems": [str(data.parent)], "batch_size": 2}
        given = {
            "model": TRAINED,
            "loss": {"type": "tensor", "pref": 1.0, "pref_atomic": 0.0},
            "learning_rate": {"type": "exp", "start_lr": 0.01, "decay_steps": 5},
            "training": {"training_data": systems, "numb_steps": 2, "save_freq": 2, "disp_freq": 1, "seed": 3},
        }
        Path(folder, "input.json").write_text(json.dumps(given))
        dp = str(Path(sys.executable).with_name("dp"))
        for command in (["train", "input.json", "--skip-neighbor-stat"], ["freeze", "-o", "q.pb"]):
            subprocess.run([dp, "--tf", *command], cwd=folder, check=True)
        keep_constants(Path(folder) / "q.pb", HERE / "q.pb")
        answer("q", str(Path(folder) / "q.pb"))


def keep_constants(source, target):
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef.FromString(source.read_bytes())
    kept = [n for n in graph.node if n.op == "Const" and n.name.split("/")[0] != "gradients"]
    target.write_bytes(graph_pb2.GraphDef(node=kept).SerializeToString())


def answer(name, path):
    """What DeePMD-kit says of a few structures, in `<name>.npz`."""
    import torch
    from deepmd.infer import DeepPot
    from deepmd.infer.deep_dipole import DeepDipole
    from deepmd.infer.deep_polar import DeepPolar

    kind = {"d": DeepDipole, "s": DeepDipole, "p": DeepPolar, "m": DeepPolar, "q": DeepPolar}.get(name, DeepPot)
    torch._C._jit_set_profiling_executor(False)  # optimised by it, atom_ener fails from the second structure on
    torch._C._jit_set_profiling_mode(False)
    model, rng = kind(path), np.random.default_rng(6)
    sheared = np.array([[4.2, 0.3, 0.0], [-1.0, 3.9, 0.4], [0.2, 1.1, 4.5]])
    cells, counts = [np.diag([5.0, 4.0, 6.0]), sheared, np.zeros((3, 3))], [6, 5, 4]
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) / 2
    stored, found = {}, []
    positions = [
        grid[:n] @ (cell if cell.any() else 4 * np.eye(3)) + rng.normal(scale=0.15, size=(n, 3))
        for n, cell in zip(counts, cells, strict=True)
    ]
    types = [rng.permutation([0, 1, 1, 0, 1, 1][:n]) for n in counts]
    fparam, aparam = rng.normal(size=(3, 2)), rng.normal(size=(sum(counts), 1))
    for k, (x, t, cell) in enumerate(zip(positions, types, cells, strict=True)):
        given, first = {}, sum(counts[:k])
        if model.get_dim_fparam():
            given["fparam"] = fparam[k : k + 1, : model.get_dim_fparam()]
        if model.get_dim_aparam():
            given["aparam"] = aparam[first : first + len(t)].reshape(1, -1)
        found.append(model.eval(x.reshape(1, -1), cell.reshape(1, 9) if cell.any() else None, t, atomic=True, **given))
    if kind is DeepPot:
        for place, key in enumerate(("energy", "forces", "virial", "atom_energy")):
            stored[key] = np.concatenate([f[place][0].reshape(-1, *{1: (3,), 2: (3, 3)}.get(place, ())) for f in found])
    else:  # graphs give the tensors of the selected atoms only, in the order of their types
        shape = (3,) if kind is DeepDipole else (3, 3)
        stored["total"] = np.stack([f.reshape(-1, *shape).sum(axis=0) for f in found])
        if name != "q":
            stored["atoms"] = np.concatenate([f.reshape(-1, *shape) for f in found])
    n_fparam, n_aparam = model.get_dim_fparam(), model.get_dim_aparam()
    np.savez(
        HERE / f"{name}.npz",
        positions=np.concatenate(positions),
        types=np.concatenate(types),
        frame_idx=np.repeat(np.arange(3), counts),
        cell=np.array(cells),
        **({"fparam": fparam[:, :n_fparam]} if n_fparam else {}),
        **({"aparam": aparam} if n_aparam else {}),
        **stored,
    )


if __name__ == "__main__":
    steps = {"torch": write_torch, "graphs": write_graphs, "trained": write_trained}
    for step in sys.argv[1:] or steps:
        steps[step]()
