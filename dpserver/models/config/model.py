"""The whole section `model`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.atten import SeAttenConfig, SeAttenV2Config
from dpserver.models.config.common import TypePairs, check_pairs, descriptor_name
from dpserver.models.config.electrostatics import ElectrostaticsConfig
from dpserver.models.config.fitting import AnyFittingConfig, EnergyFittingConfig
from dpserver.models.config.hybrid import HybridConfig
from dpserver.models.config.loc_frame import LocFrameConfig
from dpserver.models.config.pair_table import NoDescriptorConfig, PairTableConfig
from dpserver.models.config.smooth import SeE2AConfig, SeE2RConfig
from dpserver.models.config.symmetry import BehlerParrinelloConfig
from dpserver.models.config.three_body import SeE3Config
from dpserver.models.section import (
    Bool,
    Count,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Str,
    Table,
    complain,
)

MULTI_TASK: Final = (
    "belongs to a multi-task training, which dpserver does not do; train one model for each task, or the common part "
    "with DeePMD-kit and then dpserver train --finetune"
)

DescriptorConfig = Annotated[
    SeE2AConfig
    | SeE2RConfig
    | SeE3Config
    | SeAttenConfig
    | SeAttenV2Config
    | LocFrameConfig
    | BehlerParrinelloConfig
    | HybridConfig
    | NoDescriptorConfig,
    Field(discriminator="type"),
    BeforeValidator(descriptor_name),
]


def _plain_energies(value: Any) -> Any:
    """Energies of types, each a number or a list of one."""
    if not isinstance(value, list | tuple):
        return value
    return [e[0] if isinstance(e, list | tuple) and len(e) == 1 else e for e in value]


PresetBias = dict[Literal["energy"], Annotated[tuple[float | None, ...], BeforeValidator(_plain_energies)]]


class ModelConfig(Section):
    """What the potential is made of; JSON-able, and stored so in the model file.

    Attributes:
        type_map: species of the types, in order.
        descriptor: the atomic environment.
        fitting_net: descriptor to energy, dipole or polarizability of an atom.
        pair_exclude_types: pairs of types that are no neighbours of each other at all.
        atom_exclude_types: types whose atoms have no energy, dipole or polarizability of their own.
        preset_out_bias: energies that training does not fit, eV: `{"energy": [one for each type, or null]}`.
        use_srtab: file of a table of pair energies that short distances go by; see `pair_table` for what it is like.
            A finished model has the table itself.
        smin_alpha: decay length of the mean of distances that switches between table and net, Å.
        sw_rmin: mean of distances below which the table is all, Å.
        sw_rmax: mean of distances from which on the net is all, Å.
        srtab_add_bias: add the energy bias of the types to the table's energies too.
        pair_table: the shape of the table that a finished model has.
        electrostatics: charges that interact at all distances; our own section, DeePMD-kit has none like it.
        data_stat_nbatch: batches per system that davg and dstd are computed from.
        data_stat_protect: smallest dstd.
    """

    fixed: ClassVar[Table] = {
        "type": "standard",
        "bridging_method": "None",
    }
    unspoken: ClassVar[frozenset[str]] = frozenset({"pair_table"})
    inert: ClassVar[frozenset[str]] = frozenset(
        {"data_bias_nsample", "info", "model_branch_alias", "bridging_r_inner", "bridging_r_outer"}
    )
    hints: ClassVar[Table] = {
        **dict.fromkeys(("model_dict", "shared_dict", "fitting_net_dict"), MULTI_TASK),
        "type_embedding": "belongs to the TensorFlow backend; the descriptor se_atten has its own, tebd_dim",
        "modifier": "dplr is not supported: train and serve such a model with DeePMD-kit, or see model.electrostatics",
        "spin": "spin is not supported; train such a model with DeePMD-kit and serve it with --backend deepmd",
        "compress": "a model is never compressed here, the daemon makes its tables itself; leave it out",
        "finetune_head": "is given on the command line, by --head beside --finetune",
    }
    advice: ClassVar[Table] = {
        "type_map": 'the species in the order of the data\'s type numbers, as in ["O", "H"]',
        "descriptor": 'as in {"type": "se_e2_a", "rcut": 6.0}; with --finetune MODEL it may be left out',
    }

    type_map: Annotated[tuple[Str, ...], Field(min_length=1)]
    descriptor: DescriptorConfig
    fitting_net: AnyFittingConfig = EnergyFittingConfig()
    pair_exclude_types: TypePairs = ()
    atom_exclude_types: tuple[Count, ...] = ()
    preset_out_bias: PresetBias | None = None
    use_srtab: Str | None = None
    smin_alpha: PositiveFloat = 0.1
    sw_rmin: NonNegativeFloat | None = None
    sw_rmax: PositiveFloat | None = None
    srtab_add_bias: Bool = True
    pair_table: PairTableConfig | None = None
    electrostatics: ElectrostaticsConfig | None = None
    data_stat_nbatch: Positive = 10
    data_stat_protect: PositiveFloat = 1e-2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.type_map)) != len(self.type_map):
            raise complain("type_map", f"names a species twice: {list(self.type_map)}")
        self.descriptor.check_types(len(self.type_map))
        self.fitting_net.check_types(len(self.type_map))
        check_pairs("pair_exclude_types", self.pair_exclude_types, len(self.type_map))
        if any(len(energies) != len(self.type_map) for energies in (self.preset_out_bias or {}).values()):
            raise complain("preset_out_bias", f"needs one energy, or null, for each of the {len(self.type_map)} types")
        self._check_table()
        self._check_electrostatics()
        if self.atom_exclude_types and max(self.atom_exclude_types) >= len(self.type_map):
            last = len(self.type_map) - 1
            raise complain("atom_exclude_types", f"types go from 0 to {last}, got {list(self.atom_exclude_types)}")
        if not self.selected_types:
            raise complain("atom_exclude_types", "leaves no type whose atoms add anything")
        if self.pair_exclude_types and isinstance(self.descriptor, LocFrameConfig | BehlerParrinelloConfig):
            raise complain("pair_exclude_types", f"is not supported with the descriptor {self.descriptor.type}")
        return self

    def _check_table(self) -> None:
        """Raise where the keys about a table of pair energies do not fit together."""
        table = self.pair_table
        is_alone = isinstance(self.descriptor, NoDescriptorConfig)
        if is_alone and table is None:
            raise complain("descriptor", "a model needs a descriptor")
        if (self.use_srtab or table) and not isinstance(self.fitting_net, EnergyFittingConfig):
            raise complain("use_srtab", "a table of energies goes with a fitting net of energies only")
        if self.is_switched and not is_alone:
            if self.sw_rmin is None or self.sw_rmax is None:
                raise complain("use_srtab", "needs sw_rmin and sw_rmax beside it")
            if self.sw_rmin >= self.sw_rmax:
                raise complain("sw_rmin", f"must be smaller than sw_rmax = {self.sw_rmax}, got {self.sw_rmin}")
        elif self.sw_rmin is not None or self.sw_rmax is not None:
            raise complain("sw_rmin", "has a meaning with a table only, use_srtab")

    def _check_electrostatics(self) -> None:
        """Raise where charges do not go with the rest."""
        if self.electrostatics is None:
            return
        self.electrostatics.check_types(self.type_map)
        if not isinstance(self.fitting_net, EnergyFittingConfig):
            raise complain("electrostatics", "goes with a fitting net of energies only")
        if self.electrostatics.environment is not None and isinstance(self.descriptor, NoDescriptorConfig):
            raise complain("electrostatics.environment", "needs a descriptor")

    @property
    def rcut(self) -> float:
        """Cutoff of the whole model, Å."""
        return max(self.descriptor.rcut, 0.0 if self.pair_table is None else self.pair_table.rcut)

    @property
    def selected_types(self) -> tuple[int, ...]:
        """The types whose atoms have an energy, a dipole or a polarizability."""
        selected = getattr(self.fitting_net, "sel_type", None)
        mine = range(len(self.type_map)) if selected is None else sorted(selected)
        return tuple(c for c in mine if c not in self.atom_exclude_types)

    @property
    def is_switched(self) -> bool:
        """Whether a table of pair energies and the net are switched by the distances of the neighbours."""
        return self.use_srtab is not None or (self.pair_table is not None and self.pair_table.weights is None)

    @property
    def given_energies(self) -> tuple[float | None, ...]:
        """The energy of each type that training does not fit, eV; None for those that it does, empty for all."""
        preset = (self.preset_out_bias or {}).get("energy", ())
        in_vacuum = getattr(self.fitting_net, "given_energies", ())
        if not preset or not in_vacuum:
            return tuple(preset or in_vacuum)
        return tuple(b if a is None else a for a, b in zip(in_vacuum, preset, strict=True))
