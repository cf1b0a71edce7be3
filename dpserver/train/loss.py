"""The losses that are minimised: that of the 2018 Deep Potential paper, and that of a tensor.

    L = p_e ΔE²/N + p_f/(3N) Σ|ΔF|² + p_v/9 ‖ΔΞ‖²/N,    p(t) = p_limit (1 - lr/lr0) + p_start lr/lr0

averaged over the frames of a batch, and in the same way whatever else DeePMD-kit knows: atomic energies, forces with a
weight for each atom, generalized forces; absolute errors or Huber's loss instead of squares. What there is one of for
each atom is averaged over all atoms of the batch. DeePMD-kit divides the squared errors of energy and virial by N; with
`intensive_ener_virial` by N², which is the paper's |Δε|² of energies per atom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpserver.models.potential import Prediction
from dpserver.models.tensors import TensorModel, TensorPrediction
from dpserver.train.loss_config import LossConfig, TensorLossConfig


@dataclass(frozen=True, eq=False)
class Labels:
    """Reference values of a batch, on the model's device, float64.

    Attributes:
        values: what the system has, by the names of `dpserver.train.labels.LABELS`, (n_frames, …) or (n_atoms, …).
        counts: atoms of each frame, (n_frames,).
        frame_idx: frame of each atom, (n_atoms,), int64.
        types: species of each atom, (n_atoms,), int64.
    """

    values: Mapping[str, Tensor]
    counts: Tensor
    frame_idx: Tensor
    types: Tensor

    def get(self, name: str) -> Tensor | None:
        """A label, None where the system has none."""
        return self.values.get(name)


@dataclass(frozen=True, eq=False)
class Errors:
    """The loss of a batch and the mean squared errors of what it has labels for, 0-dimensional.

    Attributes:
        total: the loss.
        squares: by the names of `dpserver.train.curve.TERMS`.
    """

    total: Tensor
    squares: Mapping[str, Tensor]

    def rmse(self) -> dict[str, float]:
        """Square roots by name, that of the loss as `total`."""
        return {name: float(value.detach()) ** 0.5 for name, value in {"total": self.total, **self.squares}.items()}


class Loss:
    """Weighs the errors of a batch at a learning rate.

    Args:
        config: prefactors at the start and in the limit, and how errors are measured.
        start_lr: the learning rate at the start, lr0.
    """

    def __init__(self, config: LossConfig, start_lr: float) -> None:
        self.config = config
        self.start_lr = start_lr

    def prefactor(self, term: str, lr: float) -> float:
        """p(t) of a term; 0 where it takes no part."""
        start, limit = self.config.prefactors(term)
        return limit + (start - limit) * lr / self.start_lr if term in self.config.terms else 0.0

    def __call__(self, prediction: Prediction, labels: Labels, lr: float) -> Errors:
        """Weigh the errors of a prediction at a learning rate."""
        found = {
            **self._of_frames(prediction, labels),
            **self._of_forces(prediction, labels),
            **self._of_atoms(prediction, labels),
        }
        total = prediction.energy.new_zeros(())
        for term, (loss, _) in found.items():
            if p := self.prefactor(term, lr):
                total = total + p * loss
        is_shown = {"e", "f", "v"} | self.config.terms
        return Errors(total, {term: square for term, (_, square) in found.items() if term in is_shown})

    def _of_frames(self, prediction: Prediction, labels: Labels) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss and mean squared error of energy and virial, both per atom."""
        found = {}
        energy, virial = labels.get("energy"), labels.get("virial")
        delta_e, _, delta_v = self.config.huber_delta
        if energy is not None:
            error = (self._energy(prediction, labels) - energy) / labels.counts
            found["e"] = self._sized(error, labels.counts, delta_e), (error**2).mean()
        if virial is not None:
            counts = labels.counts[:, None, None]
            error = (prediction.virial - virial) / counts
            found["v"] = self._sized(error, counts, delta_v), (error**2).mean()
        return found

    def _energy(self, prediction: Prediction, labels: Labels) -> Tensor:
        """The predicted energies, (n_frames,); with coefficients Σ c_i E_i."""
        coefficients = labels.get("atom_energy_coeff")
        if coefficients is None or not self.config.enable_atom_ener_coeff:
            return prediction.energy
        return torch.zeros_like(prediction.energy).index_add(0, labels.frame_idx, coefficients * prediction.atom_energy)

    def _of_forces(self, prediction: Prediction, labels: Labels) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss and mean squared error of the forces, as they are, weighed, and generalized."""
        forces = labels.get("forces")
        if forces is None:
            return {}
        error = prediction.forces - forces
        scaled = error
        if self.config.relative_f is not None:
            scaled = error / (torch.linalg.vector_norm(forces, dim=1, keepdim=True) + self.config.relative_f)
        measured = torch.linalg.vector_norm(scaled, dim=1) if self.config.f_use_norm else scaled
        found = {"f": (self._measure(measured, self.config.huber_delta[1]).mean(), (error**2).mean())}
        if "pf" in self.config.terms and (weight := self._force_weight(labels)) is not None:
            found["pf"] = (self._measure(scaled) * weight).mean(), (scaled**2 * weight).mean()
        if "gf" in self.config.terms and (drdq := labels.get("drdq")) is not None:
            # Σ_i ΔF_i · dr_i/dq, for each generalized coordinate q
            of_atoms = torch.einsum("ad,adq->aq", error, drdq.reshape(len(error), 3, -1))
            square = (of_atoms.new_zeros(len(labels.counts), of_atoms.shape[1])).index_add(
                0, labels.frame_idx, of_atoms
            ) ** 2
            found["gf"] = square.mean(), square.mean()
        return found

    def _force_weight(self, labels: Labels) -> Tensor | None:
        """Weight of each atom's force, (n_atoms, 1); None where there is none."""
        weight = labels.get("atom_pref")
        if weight is None and self.config.use_default_pf:
            weight = torch.ones_like(labels.frame_idx, dtype=torch.float64)
        return None if weight is None else weight[:, None]

    def _of_atoms(self, prediction: Prediction, labels: Labels) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss and mean squared error of the atomic energies."""
        energies = labels.get("atom_energy")
        if energies is None:
            return {}
        error = prediction.atom_energy - energies
        return {"ae": (self._measure(error, self.config.huber_delta[0]).mean(), (error**2).mean())}

    def _sized(self, error: Tensor, counts: Tensor, delta: float) -> Tensor:
        """The mean of errors per atom, as they weigh in the loss: squares are those of the whole, divided by N."""
        measured = self._measure(error, delta)
        is_square = self.config.loss_func == "mse" and not self.config.use_huber
        return (measured * counts if is_square and not self.config.intensive_ener_virial else measured).mean()

    def _measure(self, error: Tensor, delta: float | None = None) -> Tensor:
        """What counts of an error: its square, its absolute value, or Huber's mixture of both."""
        if self.config.loss_func == "mae":
            return error.abs()
        if self.config.use_huber and delta is not None:
            return torch.where(error.abs() <= delta, error**2 / 2, delta * (error.abs() - delta / 2))
        return error**2


class TensorLoss:
    """Weighs the errors of dipoles or polarizabilities.

    L = p ‖Δμ‖²/n + p_atomic/n Σ_i ‖Δμ_i‖²,    n the components of a tensor

    averaged over the frames of a batch, and over those of its atoms that carry a tensor.

    Args:
        config: the prefactors.
        model: whose tensors they are.
    """

    def __init__(self, config: TensorLossConfig, model: TensorModel) -> None:
        self.config = config
        self.kind = model.kind
        self.selected = torch.tensor(model.selected)

    def __call__(self, prediction: TensorPrediction, labels: Labels, lr: float) -> Errors:
        """Weigh the errors of a prediction; the learning rate has no influence."""
        total, squares = prediction.total.new_zeros(()), {}
        whole, atoms = labels.get(self.kind), labels.get(f"atom_{self.kind}")
        if whole is not None:
            error = (prediction.total - whole).flatten(1)
            total = total + self.config.pref * (error**2).mean()
            squares[f"global_{self.kind}"] = ((error / labels.counts[:, None]) ** 2).mean()
        if atoms is not None:
            error = (prediction.atoms - atoms).flatten(1)
            if self.config.enable_atomic_weight and (weight := labels.get("atom_weight")) is not None:
                error = error * weight[:, None]
            is_selected = torch.isin(labels.types, self.selected.to(labels.types.device))
            square = (error[is_selected] ** 2).mean() if is_selected.any() else error.new_zeros(())
            total = total + self.config.pref_atomic * square
            squares[f"local_{self.kind}"] = square
        return Errors(total, squares)
