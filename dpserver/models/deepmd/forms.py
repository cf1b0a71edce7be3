"""How each descriptor is written in DeePMD-kit's files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import nn

from dpserver.errors import ConfigError, ModelFileError
from dpserver.frames import Ints
from dpserver.models.deepmd.graphdef import Constants
from dpserver.models.deepmd.tree import Array, Budget, Tree


class Place(NamedTuple):
    """A section of a descriptor in a tree, how it is written, and its dotted place."""

    section: Tree
    form: Form
    where: str


class Form(ABC):
    """One descriptor in DeePMD-kit's files: in its backend-neutral tree, and in those of its backends.

    Attributes:
        ours: its name in a configuration.
        theirs: its name in a tree.
        names: those it has in inputs.
        keys: entries of its section that are read; another one that is set is refused.
        ours_only: keys of its configuration that DeePMD-kit's inputs do not know.
    """

    ours: ClassVar[str]
    theirs: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    keys: ClassVar[frozenset[str]]
    ours_only: ClassVar[frozenset[str]] = frozenset({"keeps_excluded_slots"})

    def places(self, section: Tree, where: str) -> list[Place]:
        """The sections that a section of a tree consists of: itself, and those of its parts.

        Raises:
            ModelFileError: a part is missing or not supported.
        """
        return [Place(section, self, where)]

    def embeds_types(self, section: Tree) -> bool:
        """Whether a descriptor tells the type of its atom, so that one fitting net serves all types."""
        return False

    def given(self, config: Tree, precision: str) -> Tree:
        """The section `descriptor` of an input for DeePMD-kit.

        Args:
            config: the section `descriptor` of our configuration, complete.
            precision: of the nets, by DeePMD-kit's name.
        """
        return {**{key: value for key, value in config.items() if key not in self.ours_only}, "precision": precision}

    @abstractmethod
    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree.

        Raises:
            ModelFileError: an entry is missing or wrong.
        """

    @abstractmethod
    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made.

        Args:
            config: the section `descriptor` of our configuration, complete.
            n_types: number of types.
            budget: what the networks may take.

        Returns:
            Size of the descriptor.

        Raises:
            ModelFileError: they would take more.
        """

    @abstractmethod
    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give a descriptor the statistics and weights of a tree.

        Raises:
            ModelFileError: an array is missing or of another shape.
        """

    @abstractmethod
    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor, as the PyTorch backend writes it.

        Raises:
            ConfigError: the tree has no place for it.
        """

    @abstractmethod
    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores.

        Args:
            given: the section `descriptor` of the input.
            tensors: of the whole model, by name.
            prefix: of those of the descriptor.
            n_types: number of types.

        Raises:
            ModelFileError: something is missing.
        """

    def columns(self, given: Tree) -> Ints | None:
        """Where the features of ours are in a TensorFlow graph, in the order of ours; None where they are alike.

        Args:
            given: the section `descriptor` of the input.
        """
        return None

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores.

        Args:
            given: the section `descriptor` of the input.
            constants: of the graph.
            n_types: number of types.

        Raises:
            ModelFileError: something is missing, or graphs of this descriptor are not read.
        """
        raise ModelFileError(
            f"a .pb file with the descriptor {self.ours} is not read; turn it into a .dp file with DeePMD-kit's "
            "`dp convert-backend`, and import that"
        )


def cannot_dump(what: str) -> ConfigError:
    """The error for a descriptor that DeePMD-kit's tree has no place for."""
    return ConfigError(f"{what} cannot be exported: DeePMD-kit's .dp files know none")
