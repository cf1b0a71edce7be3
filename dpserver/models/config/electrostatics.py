"""Charges that interact at all distances, beside the nets of short range: the section `model.electrostatics`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.common import Activation
from dpserver.models.section import Bool, Positive, PositiveFloat, Section, Str, Table, complain

_LARGEST_CHARGE: Final = 10.0
"""Of an atom in practice, e; there is one with more only where a unit was mistaken or a point forgotten."""


def _charges(value: Any) -> Any:
    """Finite numbers by the names of species."""
    if not isinstance(value, dict) or not value or not all(_is_number(charge) for charge in value.values()):
        raise ValueError('must name a charge in e for each species, as in {"O": -0.8, "H": 0.4}')
    return {str(name): float(charge) for name, charge in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class ChargeNetConfig(Section):
    """The nets that tell the charge of an atom from its descriptor.

    Attributes:
        neuron: widths of the hidden layers.
        activation_function: lower case.
        scale: what the output of the net is multiplied by, e.
    """

    neuron: tuple[Positive, ...] = (32, 32)
    activation_function: Activation = "tanh"
    scale: PositiveFloat = 0.1


class ElectrostaticsConfig(Section):
    """The interaction of charges that are smeared to Gaussians.

    Attributes:
        charges: of each species, e.
        trainable: whether training changes them.
        environment: nets for what the neighbours change of a charge; None where the species alone decides.
        total_charge: what the charges of a structure add up to, e. Charges that are learnt are all shifted by the same
            amount to that end; fixed ones that do not add up to it are refused. None, for fixed charges: any sum.
        sigma: width of the Gaussians, Å.
        method: `ewald`, `pme`, or `auto` for the cheaper of both.
        accuracy: error of the forces that the sum may make, relative to their typical size.
    """

    advice: ClassVar[Table] = {"charges": 'the charge of each species in e, as in {"O": -0.8, "H": 0.4}'}

    charges: Annotated[dict[Str, float], BeforeValidator(_charges)]
    trainable: Bool = False
    environment: ChargeNetConfig | None = None
    total_charge: float | None = 0.0
    sigma: PositiveFloat = 1.0
    method: Literal["auto", "ewald", "pme"] = "auto"
    accuracy: Annotated[PositiveFloat, Field(ge=1e-12, le=1e-2)] = 1e-6

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if self.total_charge is None and not self.is_fixed:
            raise complain("total_charge", "must be a number where charges are learnt; null is for fixed charges")
        if self.total_charge is not None and not math.isfinite(self.total_charge):
            raise complain("total_charge", f"must be finite, got {self.total_charge}")
        return self

    @property
    def is_fixed(self) -> bool:
        """Whether the charges are those given, whatever is trained."""
        return not self.trainable and self.environment is None

    def doubts(self, rcut: float) -> list[str]:
        """What is allowed, but hardly meant.

        Args:
            rcut: cutoff of the network beside the charges, Å.
        """
        found = [
            f"model.electrostatics.charges: {charge:g} e for {name}; usual are a few e at most"
            for name, charge in self.charges.items()
            if abs(charge) > _LARGEST_CHARGE
        ]
        if self.sigma > rcut / 3:
            found.append(
                f"model.electrostatics.sigma is {self.sigma:g} Å, more than a third of the cutoff of {rcut:g} Å: what "
                "the network would have to add reaches beyond it; usual is 1 Å with a cutoff of 6 Å"
            )
        return found

    def check_types(self, type_map: Sequence[str]) -> None:
        """Raise where the charges are not those of the species."""
        missing = [name for name in type_map if name not in self.charges]
        known = frozenset(type_map)
        unknown = [name for name in self.charges if name not in known]
        if missing or unknown:
            found = f"lacks {', '.join(missing)}" if missing else f"names {', '.join(unknown)}"
            raise complain("electrostatics.charges", f"{found}; it needs the charge of each species of type_map")
