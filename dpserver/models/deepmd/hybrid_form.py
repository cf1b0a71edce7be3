"""The descriptor hybrid in DeePMD-kit's files: the forms of its parts, side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, cast

from torch import nn

from dpserver.errors import ModelFileError
from dpserver.models.config import flattened
from dpserver.models.deepmd.forms import Form, Place
from dpserver.models.deepmd.graphdef import Constants
from dpserver.models.deepmd.tree import Array, Budget, Tree, get
from dpserver.models.hybrid import Hybrid

_MAX_PARTS: Final = 64


class HybridForm(Form):
    """The descriptor hybrid; hybrids within hybrids are put together the same.

    Args:
        form_of: the form of a section of a tree or an input, by its place.
        form_of_input: the form of a descriptor of our configuration, by its type.
    """

    ours, theirs, names = "hybrid", "hybrid", ("hybrid",)
    keys = frozenset({"list"})

    def __init__(self, form_of: Callable[[Tree, str], Form], form_of_input: Callable[[str], Form]) -> None:
        self._form_of, self._form_of_input = form_of, form_of_input

    def places(self, section: Tree, where: str) -> list[Place]:
        """The sections that a section consists of."""
        listed = get(section, "list", list, where)
        if not 0 < len(listed) <= _MAX_PARTS:
            raise ModelFileError(f"its {where}.list has {len(listed)} parts, expected 1 to {_MAX_PARTS}")
        parts = [(part, f"{where}.list[{k}]") for k, part in enumerate(listed)]
        below = [place for part, at in parts for place in self._form_of(part, at).places(part, at)]
        return [Place(section, self, where), *below]

    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree."""
        return {"type": self.ours, "list": [form.config(part, types) for part, form in self._parts(section)]}

    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made."""
        return sum(self._form_of_input(part["type"]).spend(part, n_types, budget) for part in config["list"])

    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give each part the statistics and weights of a tree."""
        for part, (stored, form) in zip(cast(Hybrid, descriptor), self._parts(section), strict=True):
            form.fill(part, stored)

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        parts = [
            self._form_of_input(part.config.type).dump(part, types, precision) for part in cast(Hybrid, descriptor)
        ]
        return {"@class": "Descriptor", "@version": 1, "type": self.theirs, "list": parts}

    def embeds_types(self, section: Tree) -> bool:
        """Whether a part does."""
        return any(form.embeds_types(part) for part, form in self._listed(section))

    def given(self, config: Tree, precision: str) -> Tree:
        """The section `descriptor` of an input for DeePMD-kit, from our configuration."""
        parts = [self._form_of_input(part["type"]).given(part, precision) for part in config["list"]]
        return {"type": self.ours, "list": parts}

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores."""
        return {
            **given,
            "list": [
                form.of_tensors(part, tensors, f"{prefix}descrpt_list.{k}.", n_types)
                for k, (part, form) in enumerate(self._listed(given))
            ],
        }

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores."""
        return {
            **given,
            "list": [
                form.of_constants(part, _of_part(constants, k), n_types)
                for k, (part, form) in enumerate(self._listed(given))
            ],
        }

    def _listed(self, section: Tree) -> list[tuple[Tree, Form]]:
        """The parts as they stand there, and their forms."""
        parts = get(section, "list", list, "model.descriptor")
        return [(part, self._form_of(part, f"model.descriptor.list[{k}]")) for k, part in enumerate(parts)]

    def _parts(self, section: Tree) -> list[tuple[Tree, Form]]:
        """The parts with those of hybrids among them in their places, and their forms."""
        return self._listed({"list": flattened(section["list"])})


def _of_part(constants: Constants, number: int) -> Constants:
    """The constants of a part, whose scopes end in its number, by the names they have for a descriptor alone."""
    scope = re.compile(rf"((?:filter_type|descrpt_attr)[^/]*)_{number}(/.+)")
    return {match[1] + match[2]: value for name, value in constants.items() if (match := scope.fullmatch(name))}
