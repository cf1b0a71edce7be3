"""The section `loss`: which errors are minimised, and how much each of them weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.section import Bool, Count, NonNegativeFloat, PositiveFloat, Section, Table, complain

LABELS_OF_TERMS: Final = {
    "e": "energy",
    "f": "forces",
    "v": "virial",
    "ae": "atom_energy",
    "pf": "atom_pref",
    "gf": "drdq",
}
"""What each term of the energy loss compares with or is weighed by, by the names of `dpserver.train.labels`."""
_OVER_FORCES: Final = ("pf", "gf")


def _deltas(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise ValueError("must be a number > 0, or three of them for energy, force and virial")
    return tuple(float(n) for n in numbers)


class LossConfig(Section):
    """The loss of an energy model, DeePMD-kit's `ener`.

    p(t) = p_limit (1 - lr/lr0) + p_start lr/lr0; a term takes part where both of its prefactors differ from 0, and in
    the batches of the systems that have its label.

    Attributes:
        start_pref_e: energy, at the start.
        limit_pref_e: energy, in the limit of lr → 0.
        start_pref_f: force, at the start.
        limit_pref_f: force, in the limit.
        start_pref_v: virial, at the start.
        limit_pref_v: virial, in the limit.
        start_pref_ae: atomic energies, at the start.
        limit_pref_ae: atomic energies, in the limit.
        start_pref_pf: force weighed atom by atom with `atom_pref.npy`, at the start.
        limit_pref_pf: the same, in the limit.
        start_pref_gf: generalized force, at the start.
        limit_pref_gf: generalized force, in the limit.
        numb_generalized_coord: number of generalized coordinates, whose derivatives are in `drdq.npy`.
        use_default_pf: weight 1 for the atoms of systems without `atom_pref.npy`.
        relative_f: divide the error of a force by the size of the reference plus this, eV/Å.
        enable_atom_ener_coeff: the energy is Σ c_i E_i with the numbers of `atom_ener_coeff.npy`, 1 without them.
        loss_func: mse, or mae for mean absolute errors.
        f_use_norm: take the length of the error of a force instead of its components; with mae or Huber's loss.
        use_huber: Huber's loss, quadratic for small errors and linear for large ones.
        huber_delta: where it changes: for energy per atom, force, and virial per atom.
        intensive_ener_virial: divide the squared errors of energy and virial by N², as the 2018 paper does; by N if
            false, as DeePMD-kit does by default.
    """

    fixed: ClassVar[Table] = {"start_pref_h": 0.0, "limit_pref_h": 0.0}

    type: Literal["ener"] = "ener"
    start_pref_e: NonNegativeFloat = 0.02
    limit_pref_e: NonNegativeFloat = 1.0
    start_pref_f: NonNegativeFloat = 1000.0
    limit_pref_f: NonNegativeFloat = 1.0
    start_pref_v: NonNegativeFloat = 0.0
    limit_pref_v: NonNegativeFloat = 0.0
    start_pref_ae: NonNegativeFloat = 0.0
    limit_pref_ae: NonNegativeFloat = 0.0
    start_pref_pf: NonNegativeFloat = 0.0
    limit_pref_pf: NonNegativeFloat = 0.0
    start_pref_gf: NonNegativeFloat = 0.0
    limit_pref_gf: NonNegativeFloat = 0.0
    numb_generalized_coord: Count = 0
    use_default_pf: Bool = False
    relative_f: PositiveFloat | None = None
    enable_atom_ener_coeff: Bool = False
    loss_func: Literal["mse", "mae"] = "mse"
    f_use_norm: Bool = False
    use_huber: Bool = False
    huber_delta: Annotated[tuple[float, float, float], BeforeValidator(_deltas)] = (0.01, 0.01, 0.01)
    intensive_ener_virial: Bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.terms:
            raise complain("start_pref_e", "every term of the loss has a prefactor of 0; nothing would be learnt")
        if "gf" in self.terms and not self.numb_generalized_coord:
            raise complain("numb_generalized_coord", "must be greater than 0 for the loss of a generalized force")
        if self.f_use_norm and not (self.use_huber or self.loss_func == "mae"):
            raise complain("f_use_norm", 'has a meaning only with "loss_func": "mae" or "use_huber": true')
        if self.use_huber and (self.relative_f is not None or not self.terms.isdisjoint(_OVER_FORCES)):
            raise complain("use_huber", "does not go together with relative_f, start_pref_pf or start_pref_gf")
        return self

    def prefactors(self, term: str) -> tuple[float, float]:
        """At the start and in the limit."""
        return getattr(self, f"start_pref_{term}"), getattr(self, f"limit_pref_{term}")

    @property
    def terms(self) -> set[str]:
        """Terms that take part, of `LABELS_OF_TERMS`."""
        return {term for term in LABELS_OF_TERMS if all(self.prefactors(term))}

    @property
    def labels(self) -> dict[str, str]:
        """Labels that are needed, and what to do without each."""
        advice = "loss.start_pref_{0} and loss.limit_pref_{0}"
        needed = {LABELS_OF_TERMS[term]: advice.format(term) for term in LABELS_OF_TERMS if term in self.terms}
        if self.use_default_pf:
            needed.pop("atom_pref", None)
        if over_forces := [term for term in _OVER_FORCES if term in self.terms]:
            needed.setdefault("forces", advice.format(over_forces[0]))
        return needed

    @property
    def columns(self) -> list[str]:
        """Errors that the learning curve shows."""
        return ["e", *(term for term in LABELS_OF_TERMS if term != "e" and term in self.terms)]

    def summary(self) -> dict[str, Any]:
        """What a model's card says of it: the prefactors, and what is not as it usually is."""
        usual = type(self)()
        shown = {key for key in type(self).model_fields if getattr(self, key) != getattr(usual, key)}
        always = {"type", *(f"{when}_pref_{term}" for when in ("start", "limit") for term in "efv")}
        always.add("intensive_ener_virial")
        return self.model_dump(mode="json", include=always | shown)


class TensorLossConfig(Section):
    """The loss of a dipole or polarizability, DeePMD-kit's `tensor`.

    Attributes:
        pref: of the tensor of a structure.
        pref_atomic: of the tensors of its atoms.
        enable_atomic_weight: weigh each atom with `atom_weight.npy`, 1 without it.
    """

    type: Literal["tensor"]
    pref: NonNegativeFloat
    pref_atomic: NonNegativeFloat
    enable_atomic_weight: Bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.pref or self.pref_atomic):
            raise complain("pref", "and pref_atomic are both 0; nothing would be learnt")
        return self

    def labels_of(self, tensor: str) -> dict[str, str]:
        """Labels that are needed for `dipole` or `polar`, and what to do without each."""
        needed = {tensor: ("pref", self.pref), f"atom_{tensor}": ("pref_atomic", self.pref_atomic)}
        return {label: f"loss.{key}" for label, (key, value) in needed.items() if value}

    def columns_of(self, tensor: str) -> list[str]:
        """Errors that the learning curve shows, for `dipole` or `polar`."""
        return [f"local_{tensor}"] * bool(self.pref_atomic) + [f"global_{tensor}"] * bool(self.pref)

    def summary(self) -> dict[str, Any]:
        """What a model's card says of it."""
        return self.model_dump(mode="json")


def _with_type(value: Any) -> Any:
    return {"type": "ener", **value} if isinstance(value, Mapping) else value


AnyLossConfig = Annotated[LossConfig | TensorLossConfig, Field(discriminator="type"), BeforeValidator(_with_type)]
