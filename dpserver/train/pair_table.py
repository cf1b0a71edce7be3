"""The table of pair energies that an input names (`use_srtab`), as the numbers a model keeps."""

from __future__ import annotations

from dpserver.frames import Floats
from dpserver.models.config import ModelConfig, PairTableConfig
from dpserver.models.splines import read_table


def with_table(config: ModelConfig) -> tuple[ModelConfig, Floats | None]:
    """Read the table an input names.

    As in DeePMD-kit it reaches as far as the descriptor.

    Args:
        config: the section `model` of the input.

    Returns:
        The section with the shape of the table in place of its file, and the distances and energies; the section as it
        is and None without a table.

    Raises:
        ConfigError: the file cannot be read, or is no such table.
    """
    if config.use_srtab is None:
        return config, None
    rcut = config.descriptor.rcut
    values = read_table(config.use_srtab, len(config.type_map), rcut)
    step = values[1, 0] - values[0, 0]
    shape = PairTableConfig(rmin=float(values[0, 0]), step=float(step), n_splines=len(values) - 1, rcut=rcut)
    return config.model_copy(update={"use_srtab": None, "pair_table": shape}), values
