"""The loss of the 2018 Deep Potential paper, with DeePMD-kit's prefactors.

    L = p_e ΔE²/N + p_f/(3N) Σ|ΔF|² + p_v/9 ‖ΔΞ‖²/N,    p(t) = p_limit (1 - lr/lr0) + p_start lr/lr0

averaged over the frames of a batch. DeePMD-kit divides the squared errors of energy and virial by N; with
`intensive_ener_virial` by N², which is the paper's |Δε|² of energies per atom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpserver.models.potential import Prediction
from dpserver.train.config import LossConfig


@dataclass(frozen=True, eq=False)
class Labels:
    """Reference values of a batch, on the model's device, float64.

    Attributes:
        energy: (n_frames,), eV.
        forces: (n_atoms, 3), eV/Å, or None.
        virial: (n_frames, 3, 3), eV, or None.
        counts: atoms of each frame, (n_frames,).
        frame_idx: frame of each atom, (n_atoms,), int64.
    """

    energy: Tensor
    forces: Tensor | None
    virial: Tensor | None
    counts: Tensor
    frame_idx: Tensor


@dataclass(frozen=True, eq=False)
class Errors:
    """The loss of a batch and the mean squared errors it is made of, 0-dimensional; None without labels.

    Attributes:
        total: the loss.
        energy: of the energy per atom, (eV/atom)².
        force: of the force components, (eV/Å)².
        virial: of the virial components per atom, (eV/atom)².
    """

    total: Tensor
    energy: Tensor
    force: Tensor | None
    virial: Tensor | None

    def rmse(self) -> dict[str, float]:
        """Square roots by name: `total`, `e`, `f` and `v`."""
        named = {"total": self.total, "e": self.energy, "f": self.force, "v": self.virial}
        return {name: float(value.detach()) ** 0.5 for name, value in named.items() if value is not None}


class Loss:
    """Weighs the errors of a batch at a learning rate.

    Args:
        config: prefactors at the start and in the limit.
        start_lr: the learning rate at the start, lr0.
    """

    def __init__(self, config: LossConfig, start_lr: float) -> None:
        self.config = config
        self.start_lr = start_lr

    def prefactor(self, name: str, lr: float) -> float:
        """p(t) of `e`, `f` or `v`."""
        start: float = getattr(self.config, f"start_pref_{name}")
        limit: float = getattr(self.config, f"limit_pref_{name}")
        return limit + (start - limit) * lr / self.start_lr

    def __call__(self, prediction: Prediction, labels: Labels, lr: float) -> Errors:
        """Weigh the errors of a prediction at a learning rate."""
        counts = labels.counts
        size = torch.ones_like(counts) if self.config.intensive_ener_virial else counts
        loss = prediction.energy.new_zeros(())
        energy = ((prediction.energy - labels.energy) / counts) ** 2
        if self.config.has_energy:
            loss = loss + self.prefactor("e", lr) * (size * energy).mean()
        force = virial = None
        if labels.forces is not None:
            force = _mean_over_frames((prediction.forces - labels.forces) ** 2, labels)
            if self.config.has_force:
                loss = loss + self.prefactor("f", lr) * force
        if labels.virial is not None:
            per_frame = ((prediction.virial - labels.virial) ** 2).mean(dim=(1, 2)) / counts**2
            virial = per_frame.mean()
            if self.config.has_virial:
                loss = loss + self.prefactor("v", lr) * (size * per_frame).mean()
        return Errors(loss, energy.mean(), force, virial)


def _mean_over_frames(squared: Tensor, labels: Labels) -> Tensor:
    """Mean over frames of the mean over each frame's components, from (n_atoms, 3)."""
    sums = squared.new_zeros(len(labels.counts)).index_add(0, labels.frame_idx, squared.sum(dim=1))
    return (sums / (3 * labels.counts)).mean()
