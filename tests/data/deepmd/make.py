"""Write the small models of this folder with DeePMD-kit 3.2.0, and what it answers for them.

Run with a Python that has DeePMD-kit, PyTorch and TensorFlow: `python make.py`. Weights are random, no data are needed.
To keep the files small, what no reader of them looks at is left out: the code of the TorchScript archives, and all of
the graphs but their constants.
"""

import copy
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WHOLE_GRAPH = Path(tempfile.gettempdir()) / "e.pb"  # which DeePMD-kit needs to answer
NET = {"neuron": [7, 7], "seed": 2}
SMOOTH = {"sel": [16, 24], "rcut": 4.0, "rcut_smth": 0.75, "neuron": [3, 6], "seed": 1, "precision": "float64"}
MODELS = {
    "a": {
        "type_map": ["O", "H"],
        "descriptor": {"type": "se_e2_a", "axis_neuron": 2, "type_one_side": False, "resnet_dt": True, **SMOOTH},
        "fitting_net": NET,
    },
    "r": {
        "type_map": ["H", "O"],
        "descriptor": {"type": "se_e2_r", "type_one_side": True, **SMOOTH},
        "fitting_net": {**NET, "resnet_dt": False},
    },
}
ATTENTION = {**SMOOTH, "sel": 40, "rcut": 3.9, "axis_neuron": 2, "attn": 4, "tebd_dim": 3, "set_davg_zero": False}
EMBEDDED = {
    "t": {
        "type_map": ["O", "H"],
        "descriptor": {"type": "se_atten", "attn_layer": 2, "smooth_type_embedding": True, **ATTENTION},
        "fitting_net": NET,
    },
    "v": {
        "type_map": ["H", "O"],
        "descriptor": {"type": "se_atten_v2", "attn_layer": 0, "use_econf_tebd": True, **ATTENTION},
        "fitting_net": NET,
    },
}
"""Models with embedded types, which are stored without `.yaml` and `.pb`."""


def random_model(parameters: dict):
    """A model of the PyTorch backend with statistics and biases that are not trivial."""
    import torch
    from deepmd.pt.model.model import get_model

    model = get_model(copy.deepcopy(parameters))
    rng = np.random.default_rng(5)
    descriptor = model.atomic_model.descriptor
    block = getattr(descriptor, "sea", getattr(descriptor, "se_atten", descriptor))
    shape = block.mean.shape
    mean, deviation = np.zeros((2, shape[2])), np.zeros((2, shape[2]))
    mean[:, 0], deviation[:, :1] = rng.uniform(0.02, 0.05, 2), rng.uniform(0.1, 0.2, (2, 1))
    deviation[:, 1:] = rng.uniform(0.05, 0.1, (2, 1))
    block.mean[:] = torch.tensor(mean)[:, None]
    block.stddev[:] = torch.tensor(deviation)[:, None]
    model.atomic_model.out_bias[:] = torch.tensor([-3.0, 2.0]).reshape(1, 2, 1)
    model.min_nbor_dist = torch.tensor(0.8)
    return model


def write_torch() -> None:
    """The `.pt`, `.pth`, `.dp` and most `.yaml` files."""
    import torch
    from deepmd.dpmodel.utils.serialization import save_dp_model
    from deepmd.pt.train.wrapper import ModelWrapper
    from deepmd.pt.utils.serialization import deserialize_to_file, serialize_from_file

    for name, parameters in {**MODELS, **EMBEDDED}.items():
        model = random_model(parameters)
        state = ModelWrapper(model, model_params=copy.deepcopy(parameters)).state_dict()
        torch.save({"model": state}, HERE / f"{name}.pt")
        tree = serialize_from_file(str(HERE / f"{name}.pt"))
        with tempfile.TemporaryDirectory() as folder:
            deserialize_to_file(f"{folder}/{name}.pth", copy.deepcopy(tree))
            with zipfile.ZipFile(f"{folder}/{name}.pth") as whole, zipfile.ZipFile(HERE / f"{name}.pth", "w") as part:
                for entry in whole.infolist():
                    if "/code/" not in entry.filename:
                        part.writestr(entry.filename, whole.read(entry))
        save_dp_model(str(HERE / f"{name}.dp"), copy.deepcopy(tree))
        if name in MODELS:
            save_dp_model(str(HERE / f"{name}.yaml"), tree)


def write_multi_task() -> None:
    """A checkpoint of both models, as training for several tasks writes it: `m.pt`."""
    import torch
    from deepmd.pt.train.wrapper import ModelWrapper

    heads = {"first": MODELS["a"], "second": {**MODELS["r"], "model_branch_alias": ["radial"]}}
    models = {head: random_model(parameters) for head, parameters in heads.items()}
    state = ModelWrapper(models, model_params={"model_dict": copy.deepcopy(heads)}).state_dict()
    torch.save({"model": state}, HERE / "m.pt")


def write_tensorflow() -> None:
    """The `.pb` files."""
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.tf.utils.serialization import deserialize_to_file
    from tensorflow.core.framework import graph_pb2

    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            deserialize_to_file(f"{folder}/{name}.pb", load_dp_model(str(HERE / f"{name}.dp")))
            graph = graph_pb2.GraphDef.FromString(Path(f"{folder}/{name}.pb").read_bytes())
        constants = [n for n in graph.node if n.op == "Const" and n.name.split("/")[0] != "gradients"]
        (HERE / f"{name}.pb").write_bytes(graph_pb2.GraphDef(node=constants).SerializeToString())


def write_embedded_graph() -> None:
    """A graph with embedded types, `e.pb`, from a training of two steps: nothing else makes one that can be read."""
    from tensorflow.core.framework import graph_pb2

    rng = np.random.default_rng(7)
    descriptor = {key: value for key, value in ATTENTION.items() if key not in ("tebd_dim", "set_davg_zero")}
    model = {
        "type_map": ["O", "H"],
        "type_embedding": {"neuron": [3, 6], "resnet_dt": True, "use_tebd_bias": True, "seed": 3},
        "descriptor": {
            "type": "se_atten",
            "tebd_input_mode": "strip",
            "attn_layer": 2,
            "exclude_types": [[0, 0]],
            **descriptor,
        },
        "fitting_net": NET,
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data" / "set.000"
        data.mkdir(parents=True)
        np.save(data / "coord.npy", rng.uniform(0, 5, size=(2, 18)))
        np.save(data / "box.npy", np.tile(5 * np.eye(3).ravel(), (2, 1)))
        np.save(data / "energy.npy", np.array([-3.0, -2.0]))
        np.save(data / "force.npy", rng.normal(size=(2, 18)))
        (data.parent / "type.raw").write_text("0 0 1 1 1 1")
        training = {"training_data": {"systems": ["data"]}, "numb_steps": 2, "seed": 4}
        training |= {"disp_freq": 1, "save_freq": 2}
        values = {"model": model, "learning_rate": {"type": "exp", "start_lr": 1e-3}, "loss": {}, "training": training}
        (Path(folder) / "in.json").write_text(json.dumps(values))
        for arguments in (["train", "in.json"], ["freeze", "-o", "e.pb"]):
            subprocess.run([Path(sys.executable).with_name("dp"), *arguments], cwd=folder, check=True)
        shutil.copy(f"{folder}/e.pb", WHOLE_GRAPH)
        graph = graph_pb2.GraphDef.FromString(Path(f"{folder}/e.pb").read_bytes())
    constants = [n for n in graph.node if n.op == "Const" and n.name.split("/")[0] != "gradients"]
    (HERE / "e.pb").write_bytes(graph_pb2.GraphDef(node=constants).SerializeToString())


def write_answers() -> None:
    """What DeePMD-kit says of a few structures, in `<name>.npz`."""
    from deepmd.infer import DeepPot

    rng = np.random.default_rng(6)
    sheared = np.array([[4.2, 0.3, 0.0], [-1.0, 3.9, 0.4], [0.2, 1.1, 4.5]])
    cells = [np.diag([5.0, 4.0, 6.0]), sheared, np.eye(3) * 3.1, np.zeros((3, 3))]
    counts = [6, 5, 2, 4]
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) / 2
    positions = [
        grid[:n] @ (cell if cell.any() else 4 * np.eye(3)) + rng.normal(scale=0.15, size=(n, 3))
        for n, cell in zip(counts, cells, strict=True)
    ]
    positions[1] += np.array([2, -3, 1]) @ sheared
    types = [rng.permutation([0, 1, 1, 0, 1, 1][:n]) for n in counts]
    for name in (*MODELS, *EMBEDDED, "e"):
        with tempfile.TemporaryDirectory() as folder:
            from deepmd.dpmodel.utils.serialization import load_dp_model
            from deepmd.pt.utils.serialization import deserialize_to_file

            if name == "e":
                model = DeepPot(str(WHOLE_GRAPH))
            else:
                deserialize_to_file(f"{folder}/{name}.pth", load_dp_model(str(HERE / f"{name}.dp")))
                model = DeepPot(f"{folder}/{name}.pth")
        found = []
        for x, t, cell in zip(positions, types, cells, strict=True):
            box = cell.reshape(1, 9) if cell.any() else None
            found.append([a[0] for a in model.eval(x.reshape(1, -1), box, t, atomic=True)[:4]])
        energy, forces, virial, atom_energy = zip(*found, strict=True)
        np.savez(
            HERE / f"{name}.npz",
            positions=np.concatenate(positions),
            types=np.concatenate(types),
            frame_idx=np.repeat(np.arange(4), counts),
            cell=np.array(cells),
            energy=np.concatenate(energy),
            forces=np.concatenate(forces),
            virial=np.reshape(virial, (-1, 3, 3)),
            atom_energy=np.concatenate(atom_energy)[:, 0],
        )


if __name__ == "__main__":
    steps = {
        "torch": write_torch,
        "multi-task": write_multi_task,
        "tensorflow": write_tensorflow,
        "embedded": write_embedded_graph,
        "answers": write_answers,
    }
    for step in sys.argv[1:] or steps:
        steps[step]()
