"""What the worker does about training: inputs, learning rates and losses."""

import json
import sys
from pathlib import Path

import numpy as np


def normalize(requests: str, answer: str) -> None:
    """Training inputs as DeePMD-kit completes them, or null where it refuses one."""
    from deepmd.utils.argcheck import normalize
    from deepmd.utils.compat import update_deepmd_input

    found = {}
    for name, data in json.loads(Path(requests).read_text()).items():
        try:
            found[name] = normalize(update_deepmd_input(data, warning=False))
        except Exception as error:
            found[name] = None
            sys.stderr.write(f"{name}: {error}\n")
    Path(answer).write_text(json.dumps(found))


def schedules(requests: str, answer: str) -> None:
    """Learning rates of some steps, for each of some schedules and lengths."""
    from deepmd.dpmodel.utils.learning_rate import make_learning_rate_schedule

    found = []
    for request in json.loads(Path(requests).read_text()):
        schedule = make_learning_rate_schedule(request["options"], request["numb_steps"])
        found.append([float(schedule.value(step)) for step in request["steps"]])
    Path(answer).write_text(json.dumps(found))


def losses(requests: str, arrays: str, answer: str) -> None:
    """The energy loss of given predictions and labels, for each of some sets of options."""
    import torch
    from deepmd.pt.loss.ener import EnergyStdLoss

    with np.load(arrays) as z:
        given = {name: torch.tensor(z[name]) for name in z.files}
    predicted = {name[5:]: value for name, value in given.items() if name.startswith("pred_")}
    labels = {name[6:]: value for name, value in given.items() if name.startswith("label_")}
    labels |= {f"find_{name}": 1.0 for name in labels}
    n_atoms, found = predicted["force"].shape[1], []
    for request in json.loads(Path(requests).read_text()):
        loss = EnergyStdLoss(starter_learning_rate=1e-3, **request["options"])
        found.append(float(loss({}, lambda **_: predicted, labels, n_atoms, request["lr"])[1]))
    Path(answer).write_text(json.dumps(found))


def keys(requests: str, answer: str) -> None:
    """The names, other names included, that each section of an input may have."""
    from deepmd.utils import argcheck

    def names(arguments: list) -> list[str]:
        return [name for argument in arguments for name in (argument.name, *argument.alias)]

    variants = {
        "descriptor": argcheck.descrpt_variant_type_args(),
        "fitting_net": argcheck.fitting_variant_type_args(),
        "learning_rate": argcheck.learning_rate_variant_type_args(),
        "optimizer": argcheck.optimizer_variant_type_args(),
        "loss": argcheck.loss_variant_type_args(),
    }
    found = {
        section: {tag: names(choice.sub_fields.values()) for tag, choice in variant.choice_dict.items()}
        for section, variant in variants.items()
    }
    sections = {argument.name: argument for argument in argcheck.gen_args()}
    common = names(sections["learning_rate"].sub_fields.values())
    found["learning_rate"] = {tag: common + own for tag, own in found["learning_rate"].items()}
    standard = argcheck.standard_model_args()
    found["model"] = {"": names([*sections["model"].sub_fields.values(), *standard.sub_fields.values()])}
    found["training"] = {"": names(sections["training"].sub_fields.values())}
    for name in ("training_data", "validation_data"):
        found[name] = {"": names(sections["training"].sub_fields[name].sub_fields.values())}
    found["validating"] = {"": names(sections["validating"].sub_fields.values())}
    found[""] = {"": list(sections)}
    Path(answer).write_text(json.dumps(found))


def change_bias(requests: str, answer: str) -> None:
    """`dp --pt change-bias` on a checkpoint."""
    from deepmd.pt.entrypoints.main import change_bias

    change_bias(**json.loads(Path(requests).read_text()), output=answer)


TASKS = {task.__name__: task for task in (change_bias, keys, losses, normalize, schedules)}
