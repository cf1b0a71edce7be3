"""The model file `w.pt`: one dict of plain values and tensors, read with `weights_only=True` and nothing else.

Version 1 holds a model. Version 2 holds a committee: its `members` is a list of such dicts.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dpserver import files
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, DeviceError, ModelFileError
from dpserver.frames import Floats
from dpserver.models import deepmd
from dpserver.models.atomic import AtomicModel
from dpserver.models.committee import Committee, check_species
from dpserver.models.config import ModelConfig, TensorFittingConfig, parse
from dpserver.models.deepmd.archive import check_stored
from dpserver.models.gdml_file import refuse as refuse_gdml
from dpserver.models.kept_tables import fingerprint
from dpserver.models.kept_tables import parse as parse_tables
from dpserver.models.potential import Potential
from dpserver.models.sizes import AtMost, is_whole, n_numbers
from dpserver.models.tensors import TensorModel

FORMAT = "dpserver"
VERSION = 1
COMMITTEE_VERSION = 2
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "config": (dict,),
    "state": (dict,),
    "species": (list,),
    "template": (list, type(None)),
    "statistics": (dict,),
    "training": (dict,),
}
_OPTIONAL: Final = ("tables",)
_EXPECTED = "expected a file written by `dpserver train`, or a model of DeePMD-kit"
_ZIP = b"PK"
_SPARE_TENSORS: Final = 1_000
_SPARE_NUMBERS: Final = 10_000
"""What a config may ask for beyond those of the state, so that small tensors that are missing can be named."""
_EXCESS: Final = (
    "its config asks for more than its state has, {} numbers in {} tensors; the two are not of one training, so take "
    "the file as it was written, or train the model again"
)


def contents(potential: AtomicModel, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a model by plain values and tensors, as `write` stores them.

    Args:
        potential: the model; its tensors are copied to the CPU.
        training: where it comes from: data fingerprint, seed, steps, validation errors, date, code version.
    """
    tables = None
    if isinstance(potential, Potential) and potential.tables is not None:
        tables = potential.tables if potential.tables.fingerprint == fingerprint(potential) else None
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": {"model": potential.config.model_dump(mode="json"), "precision": potential.precision},
        "state": {name: tensor.detach().cpu().clone() for name, tensor in potential.state_dict().items()},
        "species": list(potential.species),
        "template": None if potential.template is None else list(potential.template),
        "statistics": {
            "min_distance": torch.from_numpy(potential.min_distance.copy()),
            "crowd_distance": torch.from_numpy(potential.crowd_distance.copy()),
        },
        "training": dict(training or {}),
        **({} if tables is None else {"tables": tables.values()}),
    }


def join(files: Sequence[str | Path]) -> dict[str, Any]:
    """Describe a committee by plain values and tensors, as `write` stores them.

    Args:
        files: model files, in the order of the members; those of a committee enter one by one.

    Raises:
        ModelFileError: a file cannot be used.
        ConfigError: there is only one member, the species of two differ, or two hold the same weights.
    """
    members: dict[str, dict[str, Any]] = {}
    for file in files:
        found = members_of(read(file))
        for k, member in enumerate(found):
            name = str(file) if len(found) == 1 else f"member {k + 1} of {file}"
            restore(member, name)
            for other, known in members.items():
                check_species(member["species"], known["species"], name, other)
                if _is_same(member["state"], known["state"]):
                    raise ConfigError(
                        f"{name} holds the same weights as {other}; the members of a committee must be trained apart, "
                        "as by dpserver train --seed 1, --seed 2, …"
                    )
            members[name] = _kept(member)
    if len(members) < 2:
        raise ConfigError(f"a committee needs at least two models, got {len(members)}")
    return committee_of(list(members.values()))


def committee_of(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe a committee by the dicts of its members."""
    return {"format": FORMAT, "version": COMMITTEE_VERSION, "members": [_kept(member) for member in members]}


def _kept(member: Mapping[str, Any]) -> dict[str, Any]:
    """What a committee's file holds of a member."""
    return {key: member[key] for key in (*_KINDS, *_OPTIONAL) if key in member}


def members_of(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models in the dict of a file, each as a dict like that of a file that holds it alone."""
    if "members" not in values:
        return [dict(values)]
    return [{"format": FORMAT, "version": VERSION, **member} for member in values["members"]]


def _is_same(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def write(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write a dict of plain values and tensors, atomically: the file is the old one or the whole new one.

    Raises:
        OutputError: it cannot be written.
    """
    files.write(path, to_bytes(values))


def save(path: str | Path, potential: AtomicModel, training: Mapping[str, Any] | None = None) -> None:
    """Write a model file; see `contents` and `write`."""
    write(path, contents(potential, training))


def to_bytes(values: Mapping[str, Any]) -> bytes:
    """The dict of a model as `write` would store it, for another process."""
    stream = io.BytesIO()
    torch.save(dict(values), stream)
    return stream.getvalue()


def from_bytes(file: bytes) -> dict[str, Any]:
    """The dict of a model that `to_bytes` has written."""
    values: dict[str, Any] = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    return values


def read(path: str | Path, head: str | None = None) -> dict[str, Any]:
    """Read the dict of a model file, with its tensors on the CPU; nothing in the file is executed.

    A model of DeePMD-kit's becomes such a dict, whose `training` says where it comes from.

    Args:
        path: of the file.
        head: which of its models, where a checkpoint of DeePMD-kit's holds several.

    Raises:
        ModelFileError: missing, no model file, unsafe, damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        missing = f"model file {path} does not exist (seen from {Path.cwd()})"
        raise ModelFileError(f"{path} is not a file" if path.exists() else missing)
    refuse_gdml(path)
    if deepmd.recognises(path):
        potential, imported = deepmd.load_with_origin(path, head)
        origin = path.name if head is None else f"{path.name}, head {head}"
        return contents(potential, {"imported": imported, "from": origin})
    if head is not None:
        raise ModelFileError(f"{path} is no checkpoint of several models of DeePMD-kit's; leave out --head {head}")
    if not _is_whole(path):
        raise _foreign(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{path} is not a dpserver model file: it holds more than tensors and plain values, and is refused because "
            f"loading it could run code; {_EXPECTED}"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile):
        raise _foreign(path) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelFileError(f"{path} is not a dpserver model file: it lacks the entry format = {FORMAT!r}")
    if values.get("version") not in (VERSION, COMMITTEE_VERSION):
        raise ModelFileError(
            f"{path} has format version {values.get('version')}, this dpserver reads {VERSION} and "
            f"{COMMITTEE_VERSION}; update dpserver"
        )
    if values["version"] == VERSION:
        _check_complete(values, str(path))
    else:
        members = values.get("members")
        if not isinstance(members, list) or not members or not all(isinstance(m, dict) for m in members):
            raise ModelFileError(f"{path} is inconsistent: it is a committee, but its members are no list of models")
        for k, member in enumerate(members):
            _check_complete(member, f"member {k + 1} of {path}")
    return values


def _check_complete(values: Mapping[str, Any], source: str) -> None:
    if missing := [key for key in _KINDS if key not in values]:
        raise ModelFileError(f"{source} is incomplete: it lacks {', '.join(missing)}")


def _is_whole(path: Path) -> bool:
    """Whether it is an archive whose every entry has its checksum; torch would read wrong weights without a word.

    Raises:
        ModelFileError: it is made to grow when it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_stored(archive)
            return archive.testzip() is None
    except ModelFileError as error:
        raise ModelFileError(f"{path} is not a dpserver model file: {error}") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError):
        return False


def _foreign(path: Path) -> ModelFileError:
    """What to say of a file that torch cannot read as a dict, from its name and its first bytes."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        return ModelFileError(f"cannot read the model file {path}: {error.strerror}")
    if not start:
        return ModelFileError(f"{path} is empty (0 bytes); copy it again, or train the model again")
    if start.startswith(_ZIP) and _may_be_ours(path):
        return ModelFileError(f"{path} is cut short or damaged; copy it again")
    return ModelFileError(f"{path} is not a dpserver model file; {_EXPECTED}")


def _may_be_ours(path: Path) -> bool:
    """Whether an archive has a dict of torch's in it, as far as its table of contents can still be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return True
    return "data.pkl" in names and "constants.pkl" not in names


def restore(values: Mapping[str, Any], source: str = "the model file") -> Potential:
    """Make a potential of the dict of one model, see `members_of`.

    Raises:
        ModelFileError: the parts of the file do not fit together, or the model is not one of energies.
    """
    model = restore_model(values, source)
    if not isinstance(model, Potential):
        raise ModelFileError(
            f"{source} is a model of the kind {model.kind}, which has no energy; it is served beside one that has: "
            f"--model energies.pt --{model.kind} {source}"
        )
    return model


def restore_model(values: Mapping[str, Any], source: str = "the model file") -> Potential | TensorModel:
    """Make a model of any kind of the dict of one, see `members_of`.

    Raises:
        ModelFileError: the parts of the file do not fit together.
    """
    _check_entries(values, source)
    state, given = values["state"], values["config"]
    try:
        config = parse(ModelConfig, given["model"], "config.model")
        kind = TensorModel if isinstance(config.fitting_net, TensorFittingConfig) else Potential
        distances, crowded = _distances(values, config, "min_distance"), None
        if "crowd_distance" in values["statistics"]:  # not in files of earlier versions, nor in DeePMD-kit's
            crowded = _distances(values, config, "crowd_distance")
        _check_tensors(state)
        n_tensors, n_held = len(state), n_numbers(state.values())
        with AtMost(n_tensors + _SPARE_TENSORS, n_held + _SPARE_NUMBERS, _EXCESS.format(n_held, n_tensors)):
            potential = kind(config, precision=given["precision"])
        _check_state(potential.state_dict(), state)
        potential.load_state_dict(state)
        if "tables" in values and isinstance(potential, Potential):
            potential.tables = parse_tables(values["tables"], potential)
    except (ConfigError, RuntimeError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{source} is inconsistent: {' '.join(str(error).split())}") from None
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ModelFileError(f"{source} holds weights that are not finite: its training has diverged")
    potential.min_distance = distances
    if crowded is not None:
        potential.crowd_distance = crowded
    potential.template = None if values["template"] is None else tuple(values["template"])
    return potential


def _check_entries(values: Mapping[str, Any], source: str) -> None:
    """Refuse a file whose entries are not of the kinds, or lack the entries, that `contents` makes."""
    for key, kinds in _KINDS.items():
        if not isinstance(values[key], kinds):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ModelFileError(
                f"{source} is inconsistent: its {key} is of type {type(values[key]).__name__}, expected {names}"
            )
    for key, needed in (("config", ("model", "precision")), ("statistics", ("min_distance",))):
        if missing := [name for name in needed if name not in values[key]]:
            raise ModelFileError(f"{source} is inconsistent: its {key} lacks {' and '.join(map(repr, missing))}")


def _distances(values: Mapping[str, Any], config: ModelConfig, name: str) -> Floats:
    """Distances of pairs of species from the statistics, (n_species, n_species), Å.

    Raises:
        ConfigError: they, or the species of the file, are not those of the config.
    """
    species, found = config.type_map, values["statistics"][name]
    if tuple(values["species"]) != species or found.shape != (len(species),) * 2 or not is_whole(found):
        raise ConfigError("species and statistics do not fit its type_map")
    distances: Floats = found.numpy().astype(np.float64)
    return distances


def _check_tensors(state: Mapping[str, Any]) -> None:
    """Refuse what is no tensor of real numbers, or has less of them than it says.

    Raises:
        TypeError: naming the first.
    """
    for name, found in state.items():
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            raise TypeError(f"{name} of its state is no tensor of real numbers")
        if not is_whole(found):
            raise TypeError(f"{name} of its state says more numbers than it has")


def _check_state(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Compare the tensors of a file with those of the network that its config describes.

    Raises:
        TypeError: a tensor is missing, too many, or of another shape.
    """
    if missing := [name for name in expected if name not in state]:
        raise TypeError(f"its state lacks {_listed(missing)}")
    if unexpected := [str(name) for name in state if name not in expected]:
        raise TypeError(f"its state holds {_listed(unexpected)}, which its config has no place for")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise TypeError(
                f"{name} of its state has the shape {tuple(state[name].shape)}, "
                f"its config asks for {tuple(tensor.shape)}"
            )


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def restore_all(values: Mapping[str, Any], source: str) -> Potential | Committee:
    """Make what serves of the dict that `read` returns: a potential, or a committee where there are members.

    Raises:
        ModelFileError: the parts of the file do not fit together.
    """
    if "members" not in values:
        return restore(values, source)
    members = [restore(member, f"member {k + 1} of {source}") for k, member in enumerate(members_of(values))]
    try:
        return Committee(members)
    except ConfigError as error:
        raise ModelFileError(f"{source} is inconsistent: {error}") from None


def load(
    path: str | Path,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    table_error: float = TABLE_ERROR,
) -> Potential | Committee:
    """Load a trained potential, or a committee of several, for evaluation.

    Args:
        path: a model file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one it was trained in.
        threads: that compute on the CPU; by default one for each core available.
        table_error: of forces, by tables of the embedding nets, relative to their typical size; what is aimed at, of
            which ten times as much is accepted.

    Raises:
        ModelFileError: the file cannot be used.
        DeviceError: the device does not exist.
        ConfigError: the precision is unknown, or a number is not positive.
    """
    return prepare(read(path), str(path), device, precision, threads, table_error)


def prepare(
    values: Mapping[str, Any],
    source: str,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    table_error: float = TABLE_ERROR,
) -> Potential | Committee:
    """Make what serves of the dict that `read` returns, ready for evaluation; see `load`."""
    model = restore_all(values, source)
    for potential in model.members:
        if precision is not None:
            potential.set_precision(precision)
        for parameter in potential.parameters():
            parameter.requires_grad_(False)
        potential.to(choose_device(device)).eval()
    model.accelerate(threads, table_error)
    return model


def load_tensor(path: str | Path, device: str = "auto", precision: str | None = None) -> TensorModel:
    """Load a trained model of dipoles or polarizabilities, for evaluation.

    Args:
        path: a model file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `double`, `mixed` or `single`; by default the one it was trained in.

    Raises:
        ModelFileError: the file cannot be used, or holds another kind of model.
        DeviceError: the device does not exist.
        ConfigError: the precision is unknown.
    """
    return prepare_tensor(read(path), str(path), device, precision)


def prepare_tensor(
    values: Mapping[str, Any], source: str, device: str = "auto", precision: str | None = None
) -> TensorModel:
    """Make a model of dipoles or polarizabilities of the dict that `read` returns; see `load_tensor`."""
    model = None if "members" in values else restore_model(values, source)
    if not isinstance(model, TensorModel):
        found = "a committee" if model is None else "a model of energies"
        raise ModelFileError(f"{source} is {found}, expected a model of dipoles or polarizabilities")
    if precision is not None:
        model.set_precision(precision)
    model.requires_grad_(False).to(choose_device(device)).eval()
    return model


def choose_device(name: str) -> torch.device:
    """Turn a device's name into a device that exists.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    return device
