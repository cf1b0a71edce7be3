"""Write the models of this folder that combine descriptors or have tables, with DeePMD-kit 3.2.0, and its answers.

Run with a Python that has DeePMD-kit, PyTorch and TensorFlow: `python make_combined.py`, after `make.py`.

    h    hybrid of se_e2_a, se_e2_r and se_e3 with different cutoffs, and exclusions of each kind
    z    se_atten switched to a table of pair energies (`use_srtab`)
    s    sum of se_atten and a table (`linear_ener`)
    l    loc_frame, of the TensorFlow backend
    k    hybrid of se_e2_a and se_e3 switched to a table, of the TensorFlow backend
"""

import copy
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from make import HERE, SMOOTH

NET = {"neuron": [5, 5], "seed": 2}
A = {"type": "se_e2_a", "axis_neuron": 2, "type_one_side": True, **SMOOTH}
R = {"type": "se_e2_r", "type_one_side": True, **SMOOTH, "rcut": 3.3, "exclude_types": [[0, 1]]}
T = {"type": "se_e3", **SMOOTH, "rcut": 3.0, "rcut_smth": 0.3, "neuron": [2, 4]}
DPA = {"type": "se_atten", "attn_layer": 0, "tebd_dim": 3, "axis_neuron": 2, **SMOOTH}
DPA |= {"sel": 40, "rcut": 3.9, "set_davg_zero": True}
SWITCH = {"sw_rmin": 0.3, "sw_rmax": 3.9, "smin_alpha": 0.1}
TYPES = {"type_map": ["O", "H"]}
LOCAL = {
    "type": "loc_frame",
    "sel_a": [4, 8],
    "sel_r": [8, 16],
    "rcut": 3.0,
    "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
}


def table(folder: str) -> str:
    """A file of pair energies, every 0.1 Å."""
    r = np.arange(0.1, 3.65, 0.1)
    energies = [(1 + 0.3 * k) * np.exp(-1.2 * r) / r * (1 - r / r[-1]) ** 2 for k in range(3)]
    np.savetxt(f"{folder}/pairs.tab", np.column_stack([r, *energies]), fmt="%.12f")
    return f"{folder}/pairs.tab"


def torch_models(folder: str) -> dict:
    file = table(folder)
    net = {"descriptor": DPA, "fitting_net": NET}
    pairs = {"type": "pairtab", "tab_file": file, "rcut": 3.9, "sel": 40, **TYPES}
    exclusions = {"pair_exclude_types": [[0, 0]], "atom_exclude_types": [1]}
    return {
        "h": {**TYPES, "descriptor": {"type": "hybrid", "list": [A, R, T]}, "fitting_net": NET, **exclusions},
        "z": {**TYPES, **net, "use_srtab": file, **SWITCH},
        "s": {**TYPES, "type": "linear_ener", "weights": [0.4, 1.5], "models": [{**TYPES, **net}, pairs]},
    }


def randomise(model) -> None:
    """Statistics and biases that are not trivial."""
    import torch

    rng = np.random.default_rng(7)
    for name, buffer in model.named_buffers():
        if name.endswith("stddev"):
            deviation = np.concatenate([rng.uniform(0.1, 0.2, (2, 1)), np.full((2, buffer.shape[2] - 1), 0.3)], axis=1)
            buffer[:] = torch.tensor(deviation)[:, None]
        elif name.endswith("mean") and "se_atten" not in name:
            buffer[:, :, 0] = torch.tensor(rng.uniform(0.02, 0.05, (2, 1)))
        elif name.endswith("out_bias"):
            buffer[:] = torch.tensor(rng.normal(size=(1, 2, 1)))


def write_torch() -> None:
    """The `.pth` and `.dp` files."""
    import torch
    from deepmd.dpmodel.utils.serialization import save_dp_model
    from deepmd.pt.model.model import get_model

    with tempfile.TemporaryDirectory() as folder:
        for name, parameters in torch_models(folder).items():
            model = get_model(copy.deepcopy(parameters))
            randomise(model)
            script = json.loads(json.dumps(parameters).replace(f"{folder}/", ""))
            model.model_def_script = json.dumps(script)
            torch.jit.save(torch.jit.script(model.eval()), f"{folder}/{name}.pth")
            answer(f"{folder}/{name}.pth", name)
            with zipfile.ZipFile(f"{folder}/{name}.pth") as whole, zipfile.ZipFile(HERE / f"{name}.pth", "w") as part:
                for entry in whole.infolist():
                    if "/code/" not in entry.filename:
                        part.writestr(entry.filename, whole.read(entry))
            tree = {"model": model.serialize(), "model_def_script": script, "backend": "PyTorch", "@variables": {}}
            if name != "s":
                save_dp_model(str(HERE / f"{name}.dp"), tree)


def answer(model: str, name: str) -> None:
    """What DeePMD-kit says of the structures of the other models."""
    from deepmd.infer import DeepPot

    structures, dp, found = np.load(HERE / "a.npz"), DeepPot(model), []
    for k, cell in enumerate(structures["cell"]):
        mine = structures["frame_idx"] == k
        box = cell.reshape(1, 9) if cell.any() else None
        x, t = structures["positions"][mine].reshape(1, -1), structures["types"][mine]
        found.append([a[0] for a in dp.eval(x, box, t, atomic=True)[:4]])
    store(name, {key: structures[key] for key in ("positions", "types", "frame_idx", "cell")}, found)


def store(name: str, structures: dict, found: list) -> None:
    energy, forces, virial, atom_energy = zip(*found, strict=True)
    np.savez(
        HERE / f"{name}.npz",
        **structures,
        energy=np.concatenate(energy),
        forces=np.concatenate(forces),
        virial=np.reshape(virial, (-1, 3, 3)),
        atom_energy=np.concatenate(atom_energy)[:, 0],
    )


def write_tensorflow() -> None:
    """The `.pb` files: a few steps of training, since nothing else makes graphs of these."""
    from deepmd.infer import DeepPot
    from tensorflow.core.framework import graph_pb2

    rng = np.random.default_rng(8)
    cell = np.array([[7.0, 0.4, 0.0], [-0.8, 7.2, 0.3], [0.2, 0.9, 6.8]])
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) / 3
    x = grid @ cell + rng.normal(scale=0.12, size=(4, 27, 3))
    types = np.arange(27) % 3 != 0
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "l": {**TYPES, "descriptor": LOCAL, "fitting_net": NET},
            "k": {
                **TYPES,
                "descriptor": {
                    "type": "hybrid",
                    "list": [{**A, "sel": [30, 60], "rcut_smth": 0.3}, {**T, "sel": [20, 40]}],
                },
                "fitting_net": NET,
                "use_srtab": table(folder),
                **SWITCH,
            },
        }
        data = Path(folder) / "data" / "set.000"
        data.mkdir(parents=True)
        arrays = {"coord": x.reshape(4, -1), "box": np.tile(cell.ravel(), (4, 1)), "energy": rng.normal(-40, 1, 4)}
        for key, values in {**arrays, "force": rng.normal(size=(4, 81))}.items():
            np.save(data / f"{key}.npy", values)
        (data.parent / "type.raw").write_text("\n".join(map(str, types.astype(int))))
        for name, model in models.items():
            training = {"training_data": {"systems": [f"{folder}/data"], "batch_size": 1}, "numb_steps": 3, "seed": 1}
            given = {"model": model, "learning_rate": {"start_lr": 0.05}, "loss": {}, "training": training}
            Path(f"{folder}/input.json").write_text(json.dumps(given))
            for command in ("train input.json --skip-neighbor-stat", f"freeze -o {name}.pb"):
                dp = [str(Path(sys.executable).parent / "dp"), "--tf", *command.split()]
                subprocess.run(dp, cwd=folder, check=True, capture_output=True)
            dp_model = DeepPot(f"{folder}/{name}.pb")
            answers = dp_model.eval(x[:1].reshape(1, -1), cell.reshape(1, 9), types.astype(int), atomic=True)
            found = [a[0] for a in answers[:4]]
            zeros = np.zeros(27, int)
            structure = {"positions": x[0], "types": types.astype(int), "frame_idx": zeros, "cell": cell[None]}
            store(name, structure, [found])
            graph = graph_pb2.GraphDef.FromString(Path(f"{folder}/{name}.pb").read_bytes())
            kept = [n for n in graph.node if n.op == "Const" and n.name.split("/")[0] != "gradients"]
            (HERE / f"{name}.pb").write_bytes(graph_pb2.GraphDef(node=kept).SerializeToString())


if __name__ == "__main__":
    write_torch()
    write_tensorflow()
