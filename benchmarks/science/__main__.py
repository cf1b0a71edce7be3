"""Run one part of the science, all of them, or write the pages from what was measured.

    python -m benchmarks.science water --quick
    python -m benchmarks.science smoothness --double-length 20
    python -m benchmarks.science all
    python -m benchmarks.science pages

An interrupted part goes on where it was when the same command is given again.
"""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
import signal
import sys
import traceback
from importlib import import_module
from typing import Any, Final

from benchmarks.science import pages
from benchmarks.science.common import QUICK_RUNS, Experiment, say
from dpserver.errors import DPServerError

PARTS: Final = {
    "water": "water",
    "molecules": "molecules",
    "smoothness": "smoothness",
    "linear-cost": "linear_cost",
    "long-range": "long_range",
    "quantum": "quantum",
}
"""Names of the parts on the command line, and their modules, in the order of the index."""


def module_of(part: str) -> Any:
    """The module of a part."""
    return import_module(f"benchmarks.science.{PARTS[part]}")


def parser(part: str | None = None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        part: the one whose own options are wanted; by default all parts are imported and described.
    """
    root = argparse.ArgumentParser(
        "python -m benchmarks.science", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="part", required=True, metavar="PART")
    for name in PARTS if part is None else [part]:
        module = module_of(name)
        one = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _common(one)
        module.add_options(one)
    _common(commands.add_parser("all", help="all parts one after the other, with their default lengths"))
    commands.add_parser("pages", help="docs/science and its pictures, from the results")
    return root


def _common(one: argparse.ArgumentParser) -> None:
    one.add_argument("--quick", action="store_true", help="minutes, to see that it works: all goes to science/quick")
    one.add_argument("--again", action="store_true", help="measure also what is there already")


def run(part: str, options: argparse.Namespace) -> Experiment:
    """Measure a part."""
    name, again = PARTS[part], options.again
    experiment = Experiment(name, is_quick=options.quick, is_again=again)
    module_of(part).run(experiment, options)
    return experiment


def run_all(options: argparse.Namespace) -> list[str]:
    """Measure all parts with their default lengths; the names of those that failed."""
    failed, done = [], []
    for part in PARTS:
        own = parser(part).parse_args([part, *(["--quick"] if options.quick else [])])
        own.again = options.again
        try:
            done.append(run(part, own))
        except DPServerError as error:
            say(f"error: {part}: {error}")
            failed.append(part)
        except Exception:  # hours of other parts are not to be lost by one
            say(f"error: {part}:\n{traceback.format_exc()}")
            failed.append(part)
    for experiment in done:  # not before: an interruption is to find them done
        experiment.finish()
    return failed


def main() -> int:
    """Run what the command line says."""
    for name in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started this in the background
        signal.signal(name, signal.default_int_handler)
    named = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    options = parser(named if named in PARTS else None).parse_args()
    failed: list[str] = []
    try:
        if options.part == "all":
            failed = run_all(options)
        elif options.part != "pages":
            run(options.part, options).finish()
        modules = {part: module_of(part) for part in PARTS}
        if getattr(options, "quick", False):
            pages.write(modules, QUICK_RUNS / "docs" / "science", QUICK_RUNS / "results")
        else:
            pages.write(modules)
    except DPServerError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    if failed:
        say(f"these parts failed, the reasons are above: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
