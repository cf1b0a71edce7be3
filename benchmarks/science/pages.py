"""docs/science/*.md, written from the results: a page for each part, and the index of the claims."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.science.common import PAGES, RESULTS, Claim, load_records, table

NOTE: Final = "<!-- Written by `python -m benchmarks.science pages` from benchmarks/results/science; not by hand. -->\n"
_REACHED: Final = {True: "yes", False: "**not reached**", None: "–"}
_INTRODUCTION: Final = """# The science

What the method promises, and what is said against it, each by an experiment that anyone can run again: `make science`
for all, `make science-water` for one part, `python -m benchmarks.science water --help` for its lengths. Parts go on
where they were interrupted. Dynamics with a model is i-PI's, through the daemon, which answers for every model at least
once; only the teacher of the long range moves its own molecules, without i-PI.

The method: L. Zhang, J. Han, H. Wang, R. Car and W. E, *Phys. Rev. Lett.* **120**, 143001 (2018), here "the paper": ab
initio accuracy for water, slightly better than GDML for molecules, linear cost. What is said against it: the energy is
not smooth where neighbours cross the cutoff or change places, and there is no long range (S. Yue et al., *J. Chem.
Phys.* **154**, 034111, 2021). The water frames used here are the 400 of DeePMD-kit's example, the paper's sets were far
larger, so that its numbers and ours do not compare one to one; the difference stands beside each.
"""


def write(parts: Mapping[str, Any], folder: Path = PAGES, results: Path = RESULTS) -> None:
    """Write all pages.

    Args:
        parts: the module of each part, by its name on the command line.
        folder: where the pages go.
        results: where the results lie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = [NOTE, _INTRODUCTION]
    for part, module in parts.items():
        name = module.__name__.rpartition(".")[2]
        found = load_records(name, results)
        (folder / f"{name}.md").write_text(_page(part, name, module, found), encoding="utf-8")
        index += [f"## [{module.TITLE}]({name}.md)\n", _claims(module.claims(found)), _command(part, name)]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


def _page(part: str, name: str, module: Any, found: Mapping[str, Any]) -> str:
    return "\n".join([NOTE, f"# {module.TITLE}\n", _command(part, name), module.page(found).rstrip() + "\n"])


def _command(part: str, name: str) -> str:
    return (
        f"`make science-{part}`; script `benchmarks/science/{name}.py`, "
        f"results `benchmarks/results/science/{name}.json`.\n"
    )


def _claims(claims: list[Claim]) -> str:
    rows = [(c.text, c.result, _REACHED[c.is_reached], c.difference) for c in claims]
    return table(("claim", "here", "holds", "what differs, what was not shown"), rows)
