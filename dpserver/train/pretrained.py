"""Starting from a trained model: its network in place of what the input leaves out, and its weights.

The model keeps its own list of species, which those of the input are among; data that number their atoms by the
input's list are renumbered. A species it has never seen would have no weights, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.config import AnyFittingConfig, DescriptorConfig, ElectrostaticsConfig, ModelConfig, parse
from dpserver.models.section import Section

_NETWORK: Final = ("descriptor", "fitting_net")
_FREE: Final = frozenset({"seed", "trainable", "precision", "rcond"})
"""Keys of a network's section that may differ from those of the model: they do not change what its weights mean."""
_BY_TYPE: Final = frozenset({"sel", "sel_a", "sel_r", "axis_rule", "exclude_types", "atom_ener", "sel_type", "scale"})
"""Keys whose values are numbered by the input's own species."""
_STATISTICS: Final = frozenset({"data_stat_nbatch", "data_stat_protect"})
_ORIGIN: Final = ("imported", "from", "date", "data_fingerprint", "step", "seed", "started_from", "bias")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model to start from.

    Attributes:
        path: of its file.
        values: of its file, see `dpserver.models.checkpoint.contents`.
        refits_bias: whether the energies of the species are to be fitted to the new data (finetuning) or kept.
    """

    path: Path
    values: Mapping[str, Any]
    refits_bias: bool = True

    @classmethod
    def read(cls, path: Path, head: str | None = None, *, refits_bias: bool = True) -> Pretrained:
        """Read a model of ours or of DeePMD-kit's.

        Raises:
            ModelFileError: there is none, or it cannot be used.
            ConfigError: it is a committee.
        """
        members = checkpoint.members_of(checkpoint.read(path, head))
        if len(members) > 1:
            raise ConfigError(f"{path} is a committee of {len(members)} models; start from the file of one of them")
        checkpoint.restore_model(members[0], str(path))
        return cls(path, members[0], refits_bias)

    @property
    def model(self) -> Mapping[str, Any]:
        """The section `model` of its configuration, as plain values."""
        return cast(Mapping[str, Any], self.values["config"]["model"])

    @property
    def origin(self) -> dict[str, Any]:
        """What the card of a model says that starts from it."""
        card = self.values["training"]
        how = "finetuned, energies of the species fitted anew" if self.refits_bias else "weights as they were"
        return {"file": self.path.name, "how": how, **{key: card[key] for key in _ORIGIN if key in card}}


class _Given(Section):
    """The parts of the input's `model` that describe a network."""

    descriptor: DescriptorConfig | None = None
    fitting_net: AnyFittingConfig | None = None


def completed(given: Any, known: Mapping[str, Any], source: str, *, replaces: bool = False) -> Any:
    """The section `model` of an input, with what it leaves out taken from a trained model.

    Args:
        given: the section as it stands in the input.
        known: that of the trained model.
        source: what to call the trained model.
        replaces: take the network of the trained model whatever the input says of it.

    Returns:
        The section with the trained model's list of species; anything else than a mapping as it is.

    Raises:
        ConfigError: the input describes another network, or has species that the model does not know.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        return given
    _check_species(given.get("type_map"), known["type_map"], source)
    found = parse(ModelConfig, known, "model")
    is_same_order = list(given.get("type_map") or known["type_map"]) == list(known["type_map"])
    network = {key: given[key] for key in _NETWORK if key in given and not replaces}
    asked = parse(_Given, network, "model")
    ignored = _FREE if is_same_order else _FREE | _BY_TYPE
    for key in network:
        if different := list(differences(getattr(asked, key), getattr(found, key), ignored, f"model.{key}")):
            raise ConfigError(
                f"{'; '.join(different)}: leave model.{key} out to take that of {source}, or give --use-pretrain-script"
            )
    rest = {key: value for key, value in given.items() if key not in (*_NETWORK, "type_map")}
    merged = {**known, **rest}
    for key in network:
        chosen = {name: value for name, value in given[key].items() if name in _FREE}
        merged[key] = {**known[key], **chosen}
    return merged


def _check_species(asked: Any, known: list[str], source: str) -> None:
    """Refuse species that the trained model has no weights for; whatever is no list is for others to refuse."""
    if not isinstance(asked, list | tuple):
        return
    if new := [name for name in asked if name not in known]:
        raise ConfigError(
            f"model.type_map: {source} does not know {', '.join(map(str, new))}, only {', '.join(known)}; leave "
            "them out of type_map and of the data, or train a new model"
        )


def check_same(asked: ModelConfig, found: ModelConfig, source: str) -> None:
    """Refuse to start a model from another one.

    Raises:
        ConfigError: naming the keys that differ.
    """
    if different := list(differences(asked, found, _FREE | _STATISTICS, "model", is_strict=True)):
        raise ConfigError(
            f"{'; '.join(different)}: this is not what {source} was trained with; use the same model section"
        )


def differences(
    asked: Section, found: Section, ignored: frozenset[str], path: str, *, is_strict: bool = False
) -> Iterator[str]:
    """What two sections disagree about, as `dotted.key is this, that in the model`.

    Args:
        asked: of the input.
        found: of the trained model.
        ignored: keys that may differ.
        path: dotted name of the section.
        is_strict: compare what the input leaves to its defaults, too.
    """
    if type(asked) is not type(found):
        yield f"{path}.type is {getattr(asked, 'type', None)}, but {getattr(found, 'type', None)} in the model"
        return
    for key in type(asked).model_fields:
        mine, theirs = getattr(asked, key), getattr(found, key)
        if key in ignored or (not is_strict and key not in asked.model_fields_set):
            continue
        if isinstance(mine, Section) and isinstance(theirs, Section):
            # Charges that are trained are shifted to their sum, fixed ones are taken off the labels: another model.
            free = ignored - {"trainable"} if isinstance(mine, ElectrostaticsConfig) else ignored
            yield from differences(mine, theirs, free, f"{path}.{key}", is_strict=is_strict)
        elif _are_sections(mine) and _are_sections(theirs) and len(mine) == len(theirs):
            for k, (one, other) in enumerate(zip(mine, theirs, strict=True)):
                yield from differences(one, other, ignored, f"{path}.{key}[{k}]", is_strict=is_strict)
        elif mine != theirs and not (key == "sel" and isinstance(mine, str)):
            yield f"{path}.{key} is {_shown(mine)}, but {_shown(theirs)} in the model"


def _are_sections(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, Section) for item in value)


def _shown(value: Any) -> str:
    if isinstance(value, Section):
        return "there"
    return str(list(value) if isinstance(value, tuple) else value)
