"""What README and docs refer to is there: links, files named in passing, and numbers that are in a record too."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.science import __main__ as science
from benchmarks.science import common, pages, presentation

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)`")
BELOW = ("", "dpserver", "dpserver/parallel", "examples/water", "tests")
"""Folders that the pages see a file from."""
FOREIGN = {"sgdml_dataset_from_extxyz.py", "benchmarks/science/NAME.py"}


def prose(page: Path) -> str:
    """A page without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs make them; where they differ there is none."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).strip()
        if plain.replace(" ", "-") == re.sub(r"[\s-]+", "-", plain):
            found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_that_are_named_exist(page: Path) -> None:
    for name in set(NAMED.findall(prose(page))) - FOREIGN:
        is_there = any((ROOT / folder / name).exists() for folder in BELOW) or (page.parent / name).exists()
        anywhere = "/" not in name and any(
            list((ROOT / top).rglob(name)) for top in ("tests", "benchmarks", "examples")
        )
        assert is_there or anywhere, f"{name}: no such file"


def test_every_section_about_performance_names_script_and_record() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for section in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]:
        assert "](../benchmarks/" in section, section.splitlines()[0]
        assert "](../benchmarks/results/" in section, section.splitlines()[0]


def test_the_water_model_has_the_errors_of_the_record() -> None:
    records = common.load_records("water")
    text = (ROOT / "docs" / "water.md").read_text(encoding="utf-8")
    shipped = records["shipped"]
    assert f"| energy, meV/atom | {shipped['energy_mae']:.2f} | {shipped['energy_rmse']:.2f} |" in text
    assert f"| force, meV/Å | {shipped['force_mae']:.1f} | {shipped['force_rmse']:.1f} |" in text
    rows = {"DeePMD-kit 3.2.0 (TensorFlow), Adam": "peer", "dpserver, Adam": "adam", "dpserver, SOAP": "soap"}
    for words, way in rows.items():
        record = records[f"se_e2_a_{way}"]
        assert f"| {words} | {record['energy_rmse']:.2f} | {record['force_rmse']:.0f} |" in text


def test_the_pages_of_the_science_are_what_the_results_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "docs" / "science"
    pages.write({part: science.module_of(part) for part in science.PARTS}, folder)
    for page in sorted(folder.glob("*.md")):
        kept = (presentation.PAGES / page.name).read_text(encoding="utf-8")
        assert kept == page.read_text(encoding="utf-8"), f"{page.name}: run python -m benchmarks.science pages"


def hooks() -> Any:
    """What mkdocs calls."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_out_of_docs_go_to_files_of_the_site() -> None:
    text = "[a](../../benchmarks/a.py#L1), [b](../water.md#top), [c](index.md), [d](../../../elsewhere.md)"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="science/water.md"))
    found = hooks().on_page_markdown(text, page, config=None, files=None)
    assert found == text.replace("../../benchmarks/a.py", "../repository/benchmarks/a.py")
    page.file.src_uri = "performance.md"
    assert hooks().on_page_markdown("[a](../x.json)", page) == "[a](repository/x.json)"
