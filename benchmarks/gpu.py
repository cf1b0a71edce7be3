"""The GPU path: its numbers against the reference on the CPU, and what it takes over sizes, beads and precisions.

    python benchmarks/gpu.py [w.pt] [--sizes 192,1536,5184,12288,41472,98304] [--beads 1,8,32] [--repeats 7]

Without a model the network is DeePMD-kit's usual one (25-50-100, 16 axes, 240x3) with random weights and the statistics
of examples/water: what it computes means nothing, how fast it does is that of any such model. It takes a few minutes.
Atoms move by 0.02 Å between evaluations; positions come from the host and forces go back, as in serving.

Needs CUDA, and numba and pydantic beside numpy and torch with Triton; the reference has its neighbour lists from vesin
where that is there, nvalchemi-toolkit-ops is measured where it is. What a machine without network lacks comes from
`.gpu/packages`, which `make gpu-packages` fills on another one; the machine's own packages go before it.

Prints tables and appends a record to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[1] / ".gpu" / "packages"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NEEDED = {
    "numpy": "it has to be installed on this machine",
    "torch": "it has to be installed on this machine, made for its CUDA",
    "triton": "it comes with torch for CUDA and has to be installed on this machine",
    "numba": f"pip install numba, or make gpu-packages GPU_PYTHON={PYTHON} GPU_MORE='numba llvmlite'",
    "pydantic": f"pip install pydantic, or make gpu-packages GPU_PYTHON={PYTHON}",
}
"""What has to be there, and where it comes from."""


def obstacles() -> list[str]:
    """Why this cannot run here: everything that is missing, and what to do."""
    found = []
    for name, remedy in NEEDED.items():
        try:
            importlib.import_module(name)
        except Exception as error:  # libraries that do not fit together raise whatever they like
            found.append(f"{name} cannot be imported ({type(error).__name__}: {error}): {remedy}")
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        found.append(f"torch {torch.__version__} sees no CUDA device")
    if any("make gpu-packages" in line for line in found):
        found.append(f"make gpu-packages needs a network: run it elsewhere, and copy what it makes to {PACKAGES}")
    return found


def main() -> None:
    """Say what is missing, or run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", type=Path)
    options.add_argument("--sizes", default="192,1536,5184,12288,41472,98304")
    options.add_argument("--beads", default="1,8,32")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--no-sweep", action="store_true")
    given = options.parse_args()
    sys.path.append(str(PACKAGES))
    if found := obstacles():
        sys.exit("\n  ".join(["benchmarks/gpu.py cannot run here:", *found]))
    logging.basicConfig(level=logging.WARNING)
    from gpu_path import run

    run(given)


if __name__ == "__main__":
    main()
