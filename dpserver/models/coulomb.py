"""The interaction of Gaussian charges in torch: the sums of torch-pme in periodic structures, all pairs in open ones.

    E = ½ Σ_i q_i φ_i,    φ_i = k Σ_j,n' q_j erf(r_ij,n/2σ)/r_ij,n        k = e²/(4πε₀) = 14.3996 eV Å

over all other atoms and all images but the atom itself. This is the interaction of two charges that are Gaussians of
width σ, and it is smooth: 1/r beyond a few σ and k/(σ√π) at r = 0. A periodic structure needs no sum in real space,

    E = (2πk/V) Σ_{G≠0} exp(-σ²G²)/G² |S(G)|² - k/(2σ√π) Σ_i q_i² - (2πkσ²/V) Q²,      S(G) = Σ_i q_i exp(iG·x_i)

the surroundings at infinity being a conductor. The last term is there if the charges do not add up to zero: a uniform
background makes the structure neutral, so that point charges in it have their usual energy once the short-range
½k Σ q_i q_j erfc(r/2σ)/r is added.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dpserver.errors import ConfigError
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.electrostatics_work import Box, check_work
from dpserver.models.memory import check_room
from dpserver.units import COULOMB

if TYPE_CHECKING:
    from dpserver.frames import Bools

_NODES: Final = 7
_PAIR_BYTES, _WAVE_BYTES = 200, 100  # of a pair of atoms, of a wave and an atom, with what autograd keeps
_POINT_BYTES, _NODE_BYTES = 100, 30_000  # of a point of a mesh, and of an atom on it, likewise
_TRIAL_BYTES = 100  # of a triple of components that may be a wave
_EWALD_COST, _NODE_COST, _MESH_COST = 12e-9, 1e-5, 150e-9
"""Seconds for a wave vector and atom, for an atom on a mesh, and for a point of the mesh, on one core."""
_TRIAL_COST, _PAIR_COST = 1e-7, 1e-7
"""Seconds for a triple of components that may be a wave, and for a pair of atoms."""


class SmearedCoulomb:
    """Potentials that Gaussian charges feel.

    Args:
        config: their width, and how the sum is made.

    Attributes:
        smearing: √2 σ, what torch-pme calls so, Å.
        reach: the longest wave, Å⁻¹.
    """

    def __init__(self, config: ElectrostaticsConfig) -> None:
        self.config = config
        self.smearing = math.sqrt(2) * config.sigma
        self.reach = reach_of(config)

    def potentials(self, charges: Tensor, positions: Tensor, cell: Tensor, *, is_periodic: bool) -> Tensor:
        """Potential at each atom of one structure, by all others.

        Args:
            charges: (n,), e, float64.
            positions: (n, 3), Å.
            cell: (3, 3) with lattice vectors as rows, Å.
            is_periodic: in all three directions, or in none.

        Returns:
            (n,), eV/e; all arguments can be differentiated by, twice.

        Raises:
            ConfigError: torch-pme is not installed.
            StructureError: the sum would take too long, see `check_work`.
            MemoryError: there is no room for the pairs of an open structure, or the waves or mesh of a periodic one.
        """
        if not is_periodic:
            return self._open(charges, positions)
        if self.method_for(len(charges), float(cell.detach().det().abs())) == "ewald":
            return self._ewald(charges, positions, cell)
        return self._mesh(charges, positions, cell)

    def method_for(self, n_atoms: int, volume: float) -> str:
        """How a periodic structure is summed: `ewald` or `pme`.

        Args:
            n_atoms: in it.
            volume: of its cell, Å³.
        """
        if self.config.method != "auto":
            return self.config.method
        n_waves = volume * self.reach**3 / (12 * math.pi**2)
        n_mesh = 4 * volume / self._spacing**3  # a power of two in each direction
        return "ewald" if _EWALD_COST * n_waves * n_atoms < _NODE_COST * n_atoms + _MESH_COST * n_mesh else "pme"

    @property
    def _spacing(self) -> float:
        """Distance of the points of a mesh that is fine enough, Å."""
        fineness: float = max(1.0, (0.3 / self.config.accuracy) ** (1 / 6))  # fits what was measured
        return self.smearing / fineness

    def _open(self, charges: Tensor, positions: Tensor) -> Tensor:
        """All pairs of an open structure."""
        n = len(charges)
        n_pairs = n * (n - 1) / 2
        check_work(_PAIR_COST * n_pairs, n, None, f"{n_pairs:.2g} pairs", self.config)
        check_room(_PAIR_BYTES * n**2 / 2, f"the charges of {n} atoms without a cell")
        i, j = torch.triu_indices(n, n, 1, device=positions.device)
        r = torch.linalg.vector_norm(positions[i] - positions[j], dim=1)
        v = COULOMB * torch.erf(r / (2 * self.config.sigma)) / r
        return torch.zeros_like(charges).index_add(0, i, charges[j] * v).index_add(0, j, charges[i] * v)

    def _potential(self, prefactor: float, device: torch.device) -> Any:
        return _library().CoulombPotential(smearing=self.smearing, prefactor=prefactor).to(device)

    def _ewald(self, charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """By all waves up to a length, each of which stands for its opposite too."""
        n, box = len(charges), Box.of(cell.detach().cpu().numpy())
        n_tried, n_waves = box.tried(self.reach), box.waves(self.reach)
        check_work(_TRIAL_COST * n_tried + _EWALD_COST * n_waves * n, n, box, f"{n_waves:.2g} waves", self.config)
        needed = _TRIAL_BYTES * n_tried + _WAVE_BYTES * n_waves * n
        check_room(needed, f"the Ewald sum by torch of the charges of {n} atoms in {box}")
        numbers = half_space(cell.detach(), self.reach)
        waves = numbers @ (2 * math.pi * torch.linalg.inv(cell).T)
        kernel = self._potential(2 * COULOMB, cell.device)
        calculator = _library().EwaldCalculator(kernel, lr_wavelength=2 * math.pi / self.reach)
        found = _call(calculator, charges, positions, cell, kvectors=waves)
        # The terms without waves were taken off twice.
        own = kernel.self_contribution() / 2 * charges
        background = kernel.background_correction() * charges.sum() / cell.det().abs()
        potentials: Tensor = 2 * found + own + background
        return potentials

    def _mesh(self, charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        """By a mesh, with Lagrange's interpolation: P3M of torch-pme 0.5 is meant for orthogonal cells."""
        n, box = len(charges), Box.of(cell.detach().cpu().numpy())
        points = math.prod(2.0 ** math.ceil(math.log2(length / self._spacing + 1)) for length in box.lengths)
        check_work(_NODE_COST * n + _MESH_COST * points, n, box, f"{points:.2g} points of a mesh", self.config)
        check_room(_NODE_BYTES * n + _POINT_BYTES * points, f"the mesh by torch for the charges of {n} atoms in {box}")
        kernel = self._potential(COULOMB, cell.device)
        calculator = _library().PMECalculator(kernel, mesh_spacing=2 * self._spacing, interpolation_nodes=_NODES)
        return 2 * _call(calculator, charges, positions, cell)


def _library() -> Any:
    """torch-pme, which is loaded when it is needed."""
    try:
        return importlib.import_module("torchpme")
    except ImportError:
        raise ConfigError(
            "this model has charges (model.electrostatics), whose sum over periodic images needs torch-pme; install it "
            "with pip install 'dpserver[longrange]'"
        ) from None


def reach_of(config: ElectrostaticsConfig) -> float:
    """The longest wave that the accuracy asks for, Å⁻¹.

    exp(-σ²G²) is what is left of a wave; forces of neutral molecules cancel in part, for which it is taken 30 times
    smaller than the accuracy.
    """
    return math.sqrt(-math.log(config.accuracy / 30)) / config.sigma


def half_space(cell: Tensor, reach: float) -> Tensor:
    """Waves that are no longer than a limit, one of each pair of opposite ones, none of them 0.

    Args:
        cell: (3, 3), Å.
        reach: the limit, Å⁻¹.

    Returns:
        Their integer components along the reciprocal lattice vectors, (n, 3), float64.
    """
    longest = (reach * torch.linalg.vector_norm(cell, dim=1) / (2 * math.pi)).floor().long().tolist()
    a, b, c = (torch.arange(-n, n + 1, dtype=cell.dtype, device=cell.device) for n in longest)
    n = torch.cartesian_prod(a[longest[0] :], b, c)
    is_first = (n[:, 0] > 0) | ((n[:, 0] == 0) & ((n[:, 1] > 0) | ((n[:, 1] == 0) & (n[:, 2] > 0))))
    n = n[is_first]
    return n[torch.linalg.vector_norm(n @ (2 * math.pi * torch.linalg.inv(cell).T), dim=1) <= reach]


def periodicity(pbc: Bools) -> bool | None:
    """Whether a structure is periodic in all directions or in none; None where it is in some.

    Args:
        pbc: (3,), bool.
    """
    return None if pbc.any() != pbc.all() else bool(pbc.all())


def _call(calculator: Any, charges: Tensor, positions: Tensor, cell: Tensor, **options: Tensor) -> Tensor:
    """Half the potential, without any neighbours: the charges are as smooth as the waves are."""
    none = torch.zeros(0, 2, dtype=torch.int64, device=cell.device)
    found: Tensor = calculator(charges[:, None], cell, positions, none, positions.new_zeros(0), **options)
    return found[:, 0]
