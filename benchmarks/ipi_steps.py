"""Run i-PI on an input and write the seconds that each step took to a JSON file: `ipi_steps.py input.xml steps.json`.

The marks are set where i-PI begins a step, so that a difference holds all that i-PI does, its output included.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from ipi.engine.simulation import Simulation
from ipi.utils.softexit import softexit


def main(source: str, result: str) -> None:
    """Run to the end of `total_steps`."""
    marks: list[float] = []
    with open(source, encoding="utf-8") as stream:
        simulation = Simulation.load_from_xml(stream, custom_verbosity="quiet")
    motion = simulation.syslist[0].motion
    step = motion.step

    def timed(*arguments: Any, **named: Any) -> None:
        marks.append(time.perf_counter())
        step(*arguments, **named)

    motion.step = timed
    softexit.hard_exit = True
    simulation.run()
    seconds = [b - a for a, b in itertools.pairwise(marks)]
    Path(result).write_text(json.dumps(seconds), encoding="utf-8")
    softexit.trigger(status=simulation.exit_status, message=simulation.exit_message)


if __name__ == "__main__":
    main(*sys.argv[1:])
