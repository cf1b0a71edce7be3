"""A run's files as i-PI writes them, made up."""

from pathlib import Path

import numpy as np

NAMES = (
    "step", "time{picosecond}", "conserved{electronvolt}", "temperature{kelvin}", "potential{electronvolt}",
    "kinetic_cv{electronvolt}", "kinetic_cv{electronvolt}(O)", "kinetic_cv{electronvolt}(H)",
)  # fmt: skip


def write_run(directory: Path, n_steps: int = 40, n_beads: int = 2, stride: int = 5) -> None:
    """Write two waters in a 7 Å box: 0.06 eV of kinetic energy per O, 0.15 eV per H."""
    rng = np.random.default_rng(0)
    header = [f"# column {k}     --> {name} : what it is." for k, name in enumerate(NAMES, 1)]
    conserved = np.linspace(-9.0, -8.994, n_steps + 1)
    rows = [f"{k} {k * 5e-4} {e} {300 + (-1) ** k} -10.0 0.72 0.12 0.60" for k, e in enumerate(conserved)]
    (directory / "simulation.out").write_text("\n".join([*header, *rows, ""]), encoding="utf-8")
    water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    for bead in range(n_beads):
        with (directory / f"simulation.pos_{bead}.xyz").open("w", encoding="utf-8") as stream:
            for step in range(0, n_steps + 1, stride):
                positions = np.concatenate([water, water + np.array([2.8, 0.0, 0.0])]) + rng.normal(0, 0.03, (6, 3))
                stream.write(f"6\n# CELL(abcABC): 7.0 7.0 7.0 90.0 90.0 90.0  Step: {step}  Bead: {bead}\n")
                stream.writelines(f"{s} {x} {y} {z}\n" for s, (x, y, z) in zip("OHHOHH", positions, strict=True))
