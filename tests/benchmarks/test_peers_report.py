"""Tables and plot of what was measured beside the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers_report

RECORDS = peers_report.ROOT / "benchmarks" / "results" / "peers.json"
AGAIN = "run python benchmarks/peers_report.py --publish"


def row(us_per_atom: float, **more: Any) -> dict[str, Any]:
    return {"us_per_atom": us_per_atom, "samples": [us_per_atom], "peak_memory_mb": 400, **more}


def record() -> dict[str, Any]:
    """Two sizes; a peer that fails, one that is not there for the larger."""
    small = {
        "dpserver double": row(20.0),
        "dpserver mixed": row(10.0),
        "dpserver double, 1 core": row(30.0),
        "dpserver double, 2 ranks": row(25.0),
        "dp_ipi, 1 thread": row(200.0),
        "dp_ipi, 2 threads": row(180.0),
        "LAMMPS, 1 rank": row(150.0),
        "LAMMPS, 2 ranks": row(90.0),
        "DeepPot.eval, PyTorch": row(185.0),
    }
    large = {
        **{name: row(value["us_per_atom"]) for name, value in small.items() if "PyTorch" not in name},
        "dpserver double": row(18.0, peak_memory_mb=600),
        "dpserver double, 2 ranks": row(15.0),
        "dp_ipi, 2 threads": {"fails": "no memory"},
    }
    return {
        "model": "water/model.dp",
        "cores": 2,
        "rounds": 5,
        "dynamics": "300 K, 0.5 fs a step",
        "peers": {"deepmd-kit": "3.2.0"},
        "atoms": {"192": small, "12288": large},
        "n_beads": 32,
        "beads": {"dpserver double, native batch": row(21.0), "dpserver double, one of 6144 atoms": row(20.0)},
        "agreement": {
            "192": {"dpserver double": {"energy": 1e-15, "forces": 2e-10}, "LAMMPS, 1 rank": {"energy": 3e-14}}
        },
        "ceiling_gflops": {"float64": 100.0, "float32": 200.0},
        "training": {"speedup": 3.2},
        "mflop_per_atom": {"products": 1.5, "tables": 0.5},
    }


def test_ratios_say_what_is_compared() -> None:
    ratios = {(ratio.slow, ratio.quick): ratio.values for ratio in peers_report.compared(record())}
    dp_ipi, both = (
        "`dp_ipi`, 1 or 2 threads, whichever is quicker",
        "as one process or on 2 ranks, whichever is quicker",
    )
    assert ratios[dp_ipi, "dpserver double"] == pytest.approx([180 / 20, 200 / 18])
    assert ratios["LAMMPS, 2 ranks", f"dpserver double, {both}"] == pytest.approx([90 / 20, 90 / 15])
    assert ratios["LAMMPS, 1 rank", "dpserver double, 1 core"] == pytest.approx([5.0, 5.0])
    lines = peers_report.markdown(record()).splitlines()
    assert f"| {dp_ipi} | dpserver double | 9 to 11.1 |" in lines
    assert f"| LAMMPS, 2 ranks | dpserver mixed, {both} | 9 |" in lines
    assert "| an atom in a batch of beads, dpserver double | in one structure of as many atoms | 1.05 |" in lines
    assert "| an atom at the size where it takes longest, dpserver double | where it is quickest | 1.11 |" in lines
    assert "| a step of training, DeePMD-kit with TensorFlow | dpserver double | 3.2 |" in lines


def test_what_was_not_measured_has_no_ratio() -> None:
    found = record()
    found["beads"], found["training"] = {}, None
    text = peers_report.markdown(found)
    assert "in a batch of beads" not in text
    assert "a step of training" not in text
    found["atoms"] = {"192": found["atoms"]["192"]}
    assert "where it is quickest" not in peers_report.markdown(found)


def test_one_core() -> None:
    found = record()
    found["cores"] = 1
    lines = peers_report.markdown(found).splitlines()
    assert "| `dp_ipi` | dpserver double | 9 to 11.1 |" in lines
    assert "| LAMMPS, 1 rank | dpserver double | 7.5 to 8.33 |" in lines


def test_times_with_what_fails_and_the_limit() -> None:
    lines = peers_report.markdown(record()).splitlines()
    assert "| µs per atom | 192 atoms | 12,288 atoms | memory |" in lines
    assert "| dp_ipi, 2 threads | 180 | fails | 0.4 GB |" in lines
    assert "| DeepPot.eval, PyTorch | 185 |  | 0.4 GB |" in lines
    assert "| the limit, double | 10 | 10 | |" in lines
    assert "| LAMMPS, 1 rank, energy | 3e-14 |" in lines


def test_headline_is_the_smallest_and_the_largest_size_and_beads() -> None:
    found = record()
    found["beads"] |= {"dpserver mixed, native batch": row(10.0), "2 dp_ipi": row(200.0)}
    lines = peers_report.headline(found).splitlines()
    assert lines[2:6] == [
        "| 192 atoms, µs per atom | 20 | 10 | 180 (`dp_ipi`) |",
        "| 12,288 atoms, µs per atom | 18 | 10 | 200 (`dp_ipi`) |",
        "| the same | 18 | 10 | 90 (LAMMPS, 2 ranks) |",
        "| 32 beads of 192 atoms, ms per step | 129 | 61.4 | 1229 (2 `dp_ipi`) |",
    ]
    assert peers_report.headline({**found, "atoms": {}, "beads": {}}).count("|---") == 4


def test_the_documentation_has_the_tables_of_the_last_record() -> None:
    last = json.loads(RECORDS.read_text(encoding="utf-8"))[-1]
    assert peers_report.markdown(last) in peers_report.PAGE.read_text(encoding="utf-8"), AGAIN
    assert peers_report.headline(last) in peers_report.README.read_text(encoding="utf-8"), AGAIN


def test_tables_and_plot_go_into_the_page(tmp_path: Path) -> None:
    page, readme = tmp_path / "page.md", tmp_path / "readme.md"
    for one in (page, readme):
        one.write_text(f"before\n{peers_report.BEGIN}\nold\n{peers_report.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        peers_report.publish(record(), page, readme)
        short = f"before\n{peers_report.BEGIN}\n{peers_report.headline(record())}\n{peers_report.END}\nafter\n"
        assert readme.read_text(encoding="utf-8") == short
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{peers_report.BEGIN}\n| µs per atom")
        assert text.endswith(f"(images/peers.png)\n{peers_report.END}\nafter\n")
        assert "old" not in text
    assert (tmp_path / "images" / "peers.png").stat().st_size > 10_000


def test_a_page_without_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md has no lines .*; put them where the tables are to be"):
        peers_report.publish(record(), page, page)
