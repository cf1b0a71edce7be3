"""Several descriptors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from dpserver.models.config.atten import SeAttenConfig, SeAttenV2Config
from dpserver.models.config.common import descriptor_name
from dpserver.models.config.descriptor import DescriptorSection, NeighbourCounts
from dpserver.models.config.smooth import SeE2AConfig, SeE2RConfig
from dpserver.models.config.three_body import SeE3Config
from dpserver.models.section import complain

PartConfig = Annotated[
    SeE2AConfig | SeE2RConfig | SeE3Config | SeAttenConfig | SeAttenV2Config,
    Field(discriminator="type"),
    BeforeValidator(descriptor_name),
]
"""A descriptor that can stand beside others."""


def flattened(parts: Any) -> Any:
    """The parts of a hybrid, with those of hybrids among them in their places: what is put together is the same."""
    if not isinstance(parts, list | tuple):
        return parts
    found: list[Any] = []
    for part in parts:
        is_hybrid = isinstance(part, Mapping) and part.get("type") == "hybrid"
        nested = flattened(part.get("list")) if is_hybrid else None
        found += nested if isinstance(nested, list) else [part]
    return found


class HybridConfig(DescriptorSection):
    """Descriptors that are put together, DeePMD-kit's hybrid.

    Attributes:
        list: the sections of the descriptors; each has its own cutoff and numbers of neighbours.
    """

    type: Literal["hybrid"] = "hybrid"
    list: Annotated[tuple[PartConfig, ...], BeforeValidator(flattened), Field(min_length=1)]

    @property
    def rcut(self) -> float:
        """The largest cutoff, Å."""
        return max(part.rcut for part in self.list)

    @property
    def precision(self) -> str:
        """DeePMD-kit's name of the highest precision of its nets."""
        return "float32" if self.precisions == {"float32"} else "default"

    @property
    def embeds_types(self) -> bool:
        """Whether a part does."""
        return any(part.embeds_types for part in self.list)

    @property
    def precisions(self) -> frozenset[str]:
        """Those of its parts."""
        return frozenset[str]().union(*(part.precisions for part in self.list))

    @property
    def cutoffs(self) -> frozenset[float]:
        """Those of its parts."""
        return frozenset[float]().union(*(part.cutoffs for part in self.list))

    def too_many(self, counts: Mapping[float, NeighbourCounts], species: Sequence[str]) -> str | None:
        """What the first of its parts that has too few says."""
        for k, part in enumerate(self.list):
            if (said := part.too_many(counts, species)) is not None:
                return said.replace("descriptor.", f"descriptor.list[{k}].", 1)
        return None

    def resolved(self, counts: Mapping[float, NeighbourCounts]) -> Self:
        """The section with numbers in place of every `sel: auto`."""
        return self.model_copy(update={"list": tuple(part.resolved(counts) for part in self.list)})

    def check_types(self, n_types: int) -> None:
        """Raise where a list of a part does not fit the number of types."""
        for k, part in enumerate(self.list):
            try:
                part.check_types(n_types)
            except PydanticCustomError as error:
                context = error.context or {}
                key = str(context["key"]).replace("descriptor.", f"descriptor.list[{k}].", 1)
                raise complain(key, str(context["problem"])) from None
