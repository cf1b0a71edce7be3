"""docs/science/*.md, written from the results: a page for each part, and the index of the claims."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.science.common import RESULTS, is_refused, load_records, say
from benchmarks.science.presentation import PAGES, Claim, images_in, refusals, table

NOTE: Final = "<!-- Written by `python -m benchmarks.science pages` from benchmarks/results/science; not by hand. -->\n"
_REACHED: Final = {True: "yes", False: "**not reached**", None: "–"}
_INTRODUCTION: Final = """# The science

What the method promises, and what is said against it, each by an experiment that anyone can run again: `make science`
for all, `make science-water` for one part, `python -m benchmarks.science water --help` for its lengths. Parts go on
where they were interrupted. All settings of a measurement, seeds and lengths among them, lie beside its numbers in the
results. Dynamics with a model is i-PI's, through the daemon; only the teacher of the long range moves its own
molecules. Below each table stands for which models the daemon has answered.

The method: L. Zhang, J. Han, H. Wang, R. Car and W. E, *Phys. Rev. Lett.* **120**, 143001 (2018), here "the paper": ab
initio accuracy for water, slightly better than GDML for molecules, linear cost. What is said against it: the energy is
not smooth where neighbours cross the cutoff or change places, and there is no long range (S. Yue et al., *J. Chem.
Phys.* **154**, 034111, 2021). The water frames used here are the 400 of DeePMD-kit's example, the paper's sets were far
larger, so that its numbers and ours do not compare one to one; the difference stands beside each.
"""


def write(parts: Mapping[str, Any], folder: Path = PAGES, results: Path = RESULTS) -> None:
    """Write all pages, and say where.

    Args:
        parts: the module of each part, by its name on the command line.
        folder: where the pages go; their pictures go to `../images/science` of it.
        results: where the results lie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = [NOTE, _INTRODUCTION]
    for part, module in parts.items():
        name = module.__name__.rpartition(".")[2]
        every = load_records(name, results)
        found = {k: r for k, r in every.items() if not is_refused(r)}
        text = [NOTE, f"# {module.TITLE}\n", _command(part, name, results), _answered(module.answered(found))]
        with images_in(folder.parent / "images" / "science"):
            text.append(module.page(found).rstrip() + "\n" + refusals(every))
        (folder / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
        index += [f"## [{module.TITLE}]({name}.md)\n", _claims(module.claims(found)), _command(part, name, results)]
        index += [_answered(module.answered(found)) + refusals(every)]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")
    say(f"pages written into {folder}, from the results in {results}")


def _command(part: str, name: str, results: Path) -> str:
    script, found = f"benchmarks/science/{name}.py", f"benchmarks/results/science/{name}.json"
    kept = f"[`{found}`](../../{found})" if (results / f"{name}.json").exists() else "none yet"
    return f"`make science-{part}`; script [`{script}`](../../{script}), results {kept}.\n"


def _answered(models: Mapping[str, str]) -> str:
    """A line that says for which models the daemon has answered, and for which it has not."""
    known = "; ".join(f"{model} – {how}" for model, how in models.items() if how)
    missing = ", ".join(model for model, how in models.items() if not how)
    left = f" Not yet through the daemon: **{missing}**." if missing else ""
    return f"Answered by the daemon: {known or 'none'}.{left}\n"


def _claims(claims: list[Claim]) -> str:
    rows = [(c.text, c.result, _REACHED[c.is_reached], c.difference) for c in claims]
    return table(("claim", "here", "holds", "what differs, what was not shown"), rows)
