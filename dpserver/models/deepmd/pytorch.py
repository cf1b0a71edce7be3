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
from dpserver.models.deepmd import pair_tables, stored_fittings
from dpserver.models.deepmd.archive import check_stored, read_archive
from dpserver.models.deepmd.kinds import check_kind, read_types
from dpserver.models.deepmd.nets import named
from dpserver.models.deepmd.tree import MAX_BYTES, Array, Budget, Tree, get, get_section

_ONLY: Final = "Default"
"""What the backend calls the model of a checkpoint that holds no other."""
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
    return _tree(parameters, module.tensors, module.attributes.get("atomic_model.smin_alpha"))


def read_checkpoint(path: Path, head: str | None = None) -> Tree:
    """Read the tree of a training checkpoint, `.pt`, with `weights_only=True`.

    Args:
        path: of the file.
        head: which of its models, where it holds several.

    Raises:
        ModelFileError: damaged, unsafe, without a model, or of a kind that is not supported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_stored(archive)
            if sum(entry.file_size for entry in archive.infolist()) > 2 * MAX_BYTES:
                raise ModelFileError("it is larger than 4 GiB; freeze the model, and import that")
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
    if "model_dict" not in parameters:
        if head is not None:
            raise ModelFileError(f"it holds a single model, and none of the name {head!r}; leave out --head")
        return _tree(parameters, dict(_arrays(state, _ONLY)))
    heads = get(parameters, "model_dict", dict, "model_params")
    name = _find_head(heads, head, path)
    return _tree(heads[name], dict(_arrays(state, name)))


def _find_head(heads: Tree, wanted: str | None, path: Path) -> str:
    """The one of several models that is meant, by its name or by another that its input gives it."""
    names: dict[str, str] = {}
    for head, parameters in heads.items():
        others = parameters.get("model_branch_alias") if isinstance(parameters, dict) else None
        for name in (head, *(others if isinstance(others, list) else ())):
            names.setdefault(str(name), head)
    if wanted in names:
        return names[wanted]
    known = f"it holds several models: {', '.join(names)}"
    if wanted is not None:
        raise ModelFileError(f"{known}; there is no {wanted!r} among them")
    raise ModelFileError(f"{known}; take one with `dpserver import {path} w.pt --head NAME`")


def _arrays(state: Mapping[Any, Any], head: str) -> Iterator[tuple[str, Array]]:
    """The tensors of one model of a checkpoint, by the names they have in a frozen one."""
    prefix, budget = f"model.{head}.", Budget()
    for name, value in state.items():
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or not value.dtype.is_floating_point:
                continue
            budget.spend(value.shape, 8, f"its tensor {name}")
            yield name.removeprefix(prefix), value.detach().double().numpy()


def _tree(parameters: object, tensors: Mapping[str, Array], alpha: object = None) -> Tree:
    """The tree of a model from its input and its tensors; `alpha` is what the file says of `smin_alpha`, if it does."""

    def standard(given: Tree, prefix: str) -> Tree:
        return _standard(given, tensors, prefix)

    if pair_tables.kind_of(parameters) is None:
        model = standard(parameters, "atomic_model.")  # type: ignore[arg-type]
    else:
        model = pair_tables.of_tensors(parameters, tensors, alpha, standard)  # type: ignore[arg-type]
    return {
        "backend": "PyTorch",
        "model": model,
        "model_def_script": parameters,
        "@variables": named(tensors, {"min_nbor_dist": "min_nbor_dist"}),
    }


def _standard(parameters: Tree, tensors: Mapping[str, Array], prefix: str) -> Tree:
    """The section `model` of a tree, for a model of one net or such a part of a model.

    Args:
        parameters: the input.
        tensors: of the whole model, by name.
        prefix: of those of this one.
    """
    form = check_kind(parameters)
    model = {"type": "standard", **parameters}
    given = get(model, "descriptor", dict, "model")
    fitting = get_section(model, "fitting_net", "model")
    n_types = len(read_types(model))
    model["descriptor"] = form.of_tensors(given, tensors, f"{prefix}descriptor.", n_types)
    n_axes = 0 if form.embeds_types(given) else 1
    model["fitting"] = stored_fittings.of_tensors(fitting, tensors, f"{prefix}fitting_net.", n_types, n_axes)
    model["@variables"] = named(tensors, {"out_bias": f"{prefix}out_bias", "out_std": f"{prefix}out_std"})
    return model
