"""What `peers.py` has measured as tables in Markdown and as a plot.

    python benchmarks/peers_report.py [peers.json] [--publish]

prints the tables of the last record; `--publish` puts them into docs/performance.md, a short one into README.md, and
draws docs/images/peers.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
BEGIN, END = "<!-- peers.py: begin -->", "<!-- peers.py: end -->"
Record = Mapping[str, Any]

LINES = {
    "dpserver double": ("C0", "o-"),
    "dpserver mixed": ("C2", "o-"),
    "LAMMPS, {ranks}": ("C1", "s--"),
    "dp_ipi": ("C3", "^--"),
    "DeepPot.eval, TensorFlow": ("C4", "v--"),
    "DeepPot.eval, PyTorch": ("C5", "v:"),
}
"""What the plot shows, and how; `dp_ipi` is the better of its kinds."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long something takes as something else.

    Attributes:
        slow: what takes longer, as a rule.
        quick: what it is held against.
        values: one for each size at which both were measured.
    """

    slow: str
    quick: str
    values: list[float]

    def row(self) -> str:
        """A line of the table."""
        low, high = _short(min(self.values)), _short(max(self.values))
        return f"| {self.slow} | {self.quick} | {low if low == high else f'{low} to {high}'} |"


def counted(n: int, what: str) -> str:
    """A number of things."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def figure(rows: Record, name: str) -> float | None:
    """µs per atom of a contestant, where it has any."""
    value = rows.get(name, {}).get("us_per_atom")
    return None if value is None else float(value)


def best(rows: Record, prefix: str) -> float | None:
    """Least of the contestants whose names begin so."""
    found = [figure(rows, name) for name in rows if name.startswith(prefix)]
    return least(*found)


def least(*values: float | None) -> float | None:
    """The least of those that were measured."""
    return min((value for value in values if value is not None), default=None)


def ratios(
    record: Record, peer: Callable[[Record], float | None], own: Callable[[Record], float | None]
) -> list[float]:
    """How many times as long a peer takes, over the sizes at which both were measured."""
    pairs = [(peer(rows), own(rows)) for rows in record["atoms"].values()]
    return [theirs / ours for theirs, ours in pairs if theirs and ours]


def limit(record: Record, precision: str) -> float | None:
    """µs per atom if everything went at the rate of matrix products, on all cores."""
    needs = record.get("mflop_per_atom")
    if not needs:
        return None
    rate = record["ceiling_gflops"]["float64" if precision == "double" else "float32"]
    return float(1e3 * sum(needs.values()) / rate / record["cores"])


def compared(record: Record) -> list[Ratio]:
    """Peers beside ours, and ours beside ours, as far as they were measured."""
    n = record["cores"]
    ranks = counted(n, "rank")
    both = "" if n == 1 else f", as one process or on {ranks}, whichever is quicker"

    def quickest(*names: str) -> Callable[[Record], float | None]:
        return lambda rows: least(*(figure(rows, name) for name in names))

    found = []
    for precision in ("double", "mixed"):
        ours = f"dpserver {precision}"
        against = ratios(record, lambda rows: best(rows, "dp_ipi"), quickest(ours))
        found.append(Ratio(f"`dp_ipi`{'' if n == 1 else f', 1 or {n} threads, whichever is quicker'}", ours, against))
        against = ratios(record, quickest(f"LAMMPS, {ranks}"), quickest(ours, f"{ours}, {ranks}"))
        found.append(Ratio(f"LAMMPS, {ranks}", f"{ours}{both}", against))
    if n > 1:
        against = ratios(record, quickest("LAMMPS, 1 rank"), quickest("dpserver double, 1 core"))
        found.append(Ratio("LAMMPS, 1 rank", "dpserver double, 1 core", against))
    beads = record.get("beads", {})
    batch, single = figure(beads, "dpserver double, native batch"), best(beads, "dpserver double, one of")
    share = [batch / single] if batch and single else []
    found.append(Ratio("an atom in a batch of beads, dpserver double", "in one structure of as many atoms", share))
    flat = [v for rows in record["atoms"].values() if (v := figure(rows, "dpserver double")) is not None]
    spread = [max(flat) / min(flat)] if len(flat) > 1 else []
    found.append(Ratio("an atom at the size where it takes longest, dpserver double", "where it is quickest", spread))
    speedup = (record.get("training") or {}).get("speedup")
    steps = [] if speedup is None else [speedup]
    found.append(Ratio("a step of training, DeePMD-kit with TensorFlow", "dpserver double", steps))
    return [ratio for ratio in found if ratio.values]


def markdown(record: Record) -> str:
    """The tables of docs/performance.md."""
    parts = (_times(record), _beads(record), _ratios(record), _agreement(record), _rest(record))
    return "\n\n".join(text for part in parts if (text := "\n".join(part)))


def headline(record: Record) -> str:
    """The short table of README.md: the smallest and the largest size, and beads, beside DeePMD-kit's codes."""
    ranks, rows = counted(record["cores"], "rank"), []
    known = [size for size, found in record["atoms"].items() if best(found, "dp_ipi") is not None]
    for size in dict.fromkeys(known[:1] + known[-1:]):
        found = record["atoms"][size]
        mine = [figure(found, f"dpserver {precision}") for precision in ("double", "mixed")]
        rows.append((f"{int(size):,} atoms, µs per atom", *mine, best(found, "dp_ipi"), "`dp_ipi`"))
        if size == known[-1]:
            rows.append(("the same", *mine, figure(found, f"LAMMPS, {ranks}"), f"LAMMPS, {ranks}"))
    if beads := record.get("beads"):
        step = 1e-3 * 192 * record["n_beads"]
        n = record["cores"]
        names = ("dpserver double, native batch", "dpserver mixed, native batch", f"{n} dp_ipi")
        times = [None if (value := figure(beads, name)) is None else step * value for name in names]
        rows.append((f"{record['n_beads']} beads of 192 atoms, ms per step", *times, f"{n} `dp_ipi`"))
    lines = ["| | dpserver, double | dpserver, mixed | DeePMD-kit |", "|---|---|---|---|"]
    for what, double, mixed, theirs, name in rows:
        if theirs is not None:
            ours = " | ".join("" if value is None else _short(value) for value in (double, mixed))
            lines.append(f"| {what} | {ours} | {_short(theirs)} ({name}) |")
    return "\n".join([*lines, "", f"{record.get('machine', 'This machine')}, {record.get('date', 'today')}."])


def publish(record: Record, page: Path = PAGE, readme: Path = README) -> None:
    """Put tables and plot into the documentation, between the marks there."""
    picture = page.parent / "images" / "peers.png"
    draw(record, picture)
    link = f"![µs per atom over the number of atoms](images/{picture.name})"
    _put(page, f"{markdown(record)}\n\n{link}")
    _put(readme, headline(record))


def _put(page: Path, tables: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; put them where the tables are to be")
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def _times(record: Record) -> Iterator[str]:
    sizes = list(record["atoms"])
    names = list(dict.fromkeys(name for rows in record["atoms"].values() for name in rows))
    yield "| µs per atom | " + " | ".join(f"{int(size):,} atoms" for size in sizes) + " | memory |"
    yield "|---" * (len(sizes) + 2) + "|"
    for name in sorted(names, key=lambda name: not name.startswith("dpserver")):
        cells = [_cell(record["atoms"][size].get(name, {})) for size in sizes]
        memory = [rows[name].get("peak_memory_mb") for rows in record["atoms"].values() if name in rows]
        most = max((m for m in memory if m is not None), default=None)
        yield f"| {name} | " + " | ".join(cells) + (f" | {most / 1000:.2g} GB |" if most else " | |")
    for precision in ("double", "mixed"):
        floor = limit(record, precision)
        if floor is not None:
            yield f"| the limit, {precision} |" + f" {_short(floor)} |" * len(sizes) + " |"


def _beads(record: Record) -> Iterator[str]:
    rows = record.get("beads", {})
    if rows:
        yield f"| {record['n_beads']} beads of 192 atoms | µs per atom | ms per step |"
        yield "|---|---|---|"
    for name, row in rows.items():
        value = row.get("us_per_atom")
        step = "" if value is None or "one of" in name else _short(1e-3 * value * 192 * record["n_beads"])
        yield f"| {name} | {_cell(row)} | {step} |"


def _ratios(record: Record) -> Iterator[str]:
    rows = [ratio.row() for ratio in compared(record)]
    if rows:
        yield "| time of | over that of | ratio |"
        yield "|---|---|---|"
    yield from rows


def _agreement(record: Record) -> Iterator[str]:
    sizes = list(record["agreement"])
    names = dict.fromkeys(name for rows in record["agreement"].values() for name in rows)
    if names:
        yield "| off the reference path | " + " | ".join(f"{int(size):,} atoms" for size in sizes) + " |"
        yield "|---" * (len(sizes) + 1) + "|"
    for name in names:
        rows = [record["agreement"][size].get(name, {}) for size in sizes]
        is_energy = not any("forces" in row for row in rows)
        cells = [f"{row['energy' if is_energy else 'forces']:.0e}" if row else "" for row in rows]
        yield f"| {name}{', energy' if is_energy else ''} | " + " | ".join(cells) + " |"


def _rest(record: Record) -> Iterator[str]:
    """Ceilings, and how it was done."""
    gflops = " and ".join(f"{value:.0f} in {name}" for name, value in record["ceiling_gflops"].items())
    peers = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    yield f"One core reached {gflops} GFLOP/s in products of matrices in the same run."
    yield f"Medians of {record['rounds']} turns, the model {record['model']},"
    yield f"{record['dynamics']}; {record.get('machine', 'this machine')}, {record.get('date', 'today')}; {peers}."


def _cell(row: Record) -> str:
    value = row.get("us_per_atom")
    if value is not None:
        return _short(value)
    return "fails" if "fails" in row else ""


def _short(value: float) -> str:
    """Three digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(record: Record, path: Path) -> None:
    """µs per atom over the number of atoms, and the limit of the machine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.0, 4.6), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    for line, (colour, style) in LINES.items():
        name = line.format(ranks=counted(record["cores"], "rank"))
        values = {
            int(size): best(rows, name) if name == "dp_ipi" else figure(rows, name)
            for size, rows in record["atoms"].items()
        }
        points = sorted((size, value) for size, value in values.items() if value is not None)
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=name)
    for precision, colour in (("double", "C0"), ("mixed", "C2")):
        floor = limit(record, precision)
        if floor is not None:
            axes.axhline(floor, color=colour, lw=0.8, ls=":")
            axes.annotate(
                f"limit, {precision}", (1.0, floor), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                textcoords="offset points", ha="right", fontsize=8, color=colour,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel=f"µs per atom and evaluation, {record['cores']} cores")
    axes.grid(which="both", lw=0.3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)


def main() -> None:
    """Print the tables of the last record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", default=ROOT / "benchmarks" / "results" / "peers.json")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args()
    record = json.loads(given.records.read_text(encoding="utf-8"))[-1]
    if given.publish:
        publish(record)
    print(markdown(record))


if __name__ == "__main__":
    main()
