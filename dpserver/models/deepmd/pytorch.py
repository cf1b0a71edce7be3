"""Models of DeePMD-kit's PyTorch backend: frozen ones (`.pth`) and checkpoints (`.pt`), made into its tree.

Both hold the input the model was trained with and tensors by the names of the backend's modules.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.archive import read_archive
from dpserver.models.deepmd.kinds import check_kind, read_types
from dpserver.models.deepmd.nets import named, networks_of_tensors
from dpserver.models.deepmd.tree import MAX_BYTES, Array, Tree, get, get_section

_WANTED: Final = re.compile(r"(?!.*\._networks\.).*")
"""A collection of networks names each twice."""


def read_frozen(path: Path) -> Tree:
    """Read the tree of a frozen model, `.pth`; nothing in it is executed.

    Raises:
        ModelFileError: damaged, hostile, or of a kind that is not supported.
    """
    module = read_archive(path, _WANTED)
    script = module.attributes.get("model_def_script")
    if not isinstance(script, str):
        raise ModelFileError("it is an archive of TorchScript, but no frozen model: it lacks model_def_script")
    try:
        parameters = json.loads(script)
    except (ValueError, RecursionError):
        raise ModelFileError("its model_def_script is no JSON") from None
    return _tree(parameters, module.tensors)


def read_checkpoint(path: Path) -> Tree:
    """Read the tree of a training checkpoint, `.pt`, with `weights_only=True`.

    Raises:
        ModelFileError: damaged, unsafe, without a model, or of a kind that is not supported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 2 * MAX_BYTES:
                raise ModelFileError("unpacked it would take more than 4 GiB; freeze the model, and import that")
            if (bad := archive.testzip()) is not None:
                raise ModelFileError(f"it is cut short or damaged at {bad}; copy it again")
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            "it holds more than tensors and plain values, and is refused because loading it could run code; freeze the "
            "model with `dp --pt freeze`, and import that"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"it is cut short or damaged: {' '.join(str(error).split())[:200]}") from None
    state = values.get("model", values) if isinstance(values, dict) else values
    extra = get(state, "_extra_state", dict, "checkpoint")
    parameters = get(extra, "model_params", dict, "checkpoint._extra_state")
    if "model_dict" in parameters:
        heads = ", ".join(map(str, get(parameters, "model_dict", dict, "model_params")))
        raise ModelFileError(
            f"it holds several models ({heads}); freeze one with `dp --pt freeze --head NAME`, and import that"
        )
    return _tree(parameters, dict(_arrays(state)))


def _arrays(state: Mapping[Any, Any]) -> Iterator[tuple[str, Array]]:
    """The tensors of a checkpoint's only model, by the names they have in a frozen one."""
    prefix = "model.Default."
    for name, value in state.items():
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or not value.dtype.is_floating_point:
                continue
            yield name.removeprefix(prefix), value.detach().double().numpy()


def _tree(parameters: object, tensors: Mapping[str, Array]) -> Tree:
    """The tree of a model from its input and its tensors."""
    form = check_kind(parameters)
    model: Tree = dict(parameters)  # type: ignore[call-overload]
    given = get(model, "descriptor", dict, "model")
    fitting = get_section(model, "fitting_net", "model")
    n_types = len(read_types(model))
    fit = "atomic_model.fitting_net."
    model["descriptor"] = form.of_tensors(given, tensors, "atomic_model.descriptor.", n_types)
    model["fitting"] = {
        **fitting,
        "nets": networks_of_tensors(tensors, f"{fit}filter_layers.", 1, n_types),
        "@variables": named(tensors, {"bias_atom_e": f"{fit}bias_atom_e"}),
    }
    model["@variables"] = named(tensors, {"out_bias": "atomic_model.out_bias", "out_std": "atomic_model.out_std"})
    return {
        "backend": "PyTorch",
        "model": model,
        "model_def_script": parameters,
        "@variables": named(tensors, {"min_nbor_dist": "min_nbor_dist"}),
    }
