"""The descriptor of Behler and Parrinello, atom-centred symmetry functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.descriptor import DescriptorSection
from dpserver.models.section import NonNegativeFloat, Positive, PositiveFloat, complain

_NEAREST: Final = 0.8
"""Centre of the first Gaussian of `auto`, Å: no two atoms are nearer."""
_N_RADIAL: Final = 12
_N_ANGULAR: Final = 2
_MOST_ON_A_GRID: Final = 1000
_ZETAS: Final = (1, 4, 16)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value.partition(":")[0] == "auto"


def _number(text: str, default: int) -> int:
    """The n of `auto:n`."""
    given = text.partition(":")[2]
    if ":" not in text:
        return default
    if not given.isdecimal() or not 1 <= int(given) <= _MOST_ON_A_GRID:
        raise ValueError(f'after "auto:" comes a number of functions from 1 to {_MOST_ON_A_GRID}, got {text!r}')
    return int(given)


def _sign(value: Any) -> Any:
    if isinstance(value, bool) or value not in (-1, 1):
        raise ValueError("lambda must be 1 or -1")
    return int(value)


RadialFunction = tuple[PositiveFloat, NonNegativeFloat]
AngularFunction = tuple[NonNegativeFloat, Annotated[int, BeforeValidator(_sign)], Positive]


def radial_grid(rcut: float, number: int) -> tuple[tuple[float, float], ...]:
    """Gaussians on an even grid from 0.8 Å towards the cutoff, as wide as the grid is coarse: (η, R_s) of each.

    Args:
        rcut: the cutoff, Å.
        number: of functions.
    """
    step = (rcut - _NEAREST) / number if rcut > _NEAREST else rcut / number
    first = _NEAREST if rcut > _NEAREST else 0.0
    return tuple((0.5 / step**2, first + k * step) for k in range(number))


def angular_grid(rcut: float, number: int) -> tuple[tuple[float, int, int], ...]:
    """Angular functions of `number` reaches, each with both signs of λ and three widths of angle: (η, λ, ζ) of each.

    The k-th reach is σ = rcut/k, and η = 1/(2σ²).

    Args:
        rcut: the cutoff, Å.
        number: of reaches.
    """
    return tuple(
        (0.5 * (k / rcut) ** 2, sign, zeta) for k in range(1, number + 1) for zeta in _ZETAS for sign in (1, -1)
    )


class BehlerParrinelloConfig(DescriptorSection):
    """The atom-centred symmetry functions of Behler and Parrinello, behler_parrinello.

    Attributes:
        rcut: cutoff, Å.
        radial: the functions G2, [η, R_s] each, in 1/Å² and Å; the same for all pairs of species. `auto` or `auto:n`
            puts n of them, by default 12, on a grid.
        angular: the functions G4, [η, λ, ζ] each, η in 1/Å², λ 1 or -1, ζ a whole number; the same for all triples of
            species. `auto` or `auto:n` makes n reaches, by default 2, with six functions each; [] are none.
    """

    type: Literal["behler_parrinello"] = "behler_parrinello"
    rcut: PositiveFloat = 6.0
    radial: Annotated[tuple[RadialFunction, ...], Field(min_length=1)]
    angular: tuple[AngularFunction, ...]

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        """Put numbers in place of `auto`, which a key that is left out means too."""
        if not isinstance(data, Mapping):
            return data
        rcut = data.get("rcut", cls.model_fields["rcut"].default)
        found = {"radial": "auto", "angular": "auto", **data}
        if isinstance(rcut, bool) or not isinstance(rcut, int | float) or not rcut > 0:
            return {**found, "radial": [[1.0, 0.0]], "angular": []}  # the error about rcut is the one to show
        grids = {"radial": (radial_grid, _N_RADIAL), "angular": (angular_grid, _N_ANGULAR)}
        for key, (grid, default) in grids.items():
            if _is_auto(found[key]):
                try:
                    found[key] = grid(rcut, _number(found[key], default))
                except ValueError as error:
                    raise complain(key, str(error)) from None
            elif isinstance(found[key], str):
                raise complain(key, f'expected a list of functions, "auto" or "auto:n", got {found[key]!r}')
        return found

    @model_validator(mode="after")
    def _different(self) -> BehlerParrinelloConfig:
        for key in ("radial", "angular"):
            functions = getattr(self, key)
            if len(set(functions)) != len(functions):
                raise complain(key, "names a function twice")
        return self

    def check_types(self, n_types: int) -> None:
        """Nothing depends on the number of types."""
