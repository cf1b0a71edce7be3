"""What a model costs on this machine: times over sizes and beads, where they go, and how near the machine's limit."""

from dpserver.bench.ceiling import ceiling
from dpserver.bench.measure import Stages, Timing, measure, stages
from dpserver.bench.structures import composition, imagined, moving, tiled

__all__ = ["Stages", "Timing", "ceiling", "composition", "imagined", "measure", "moving", "stages", "tiled"]
