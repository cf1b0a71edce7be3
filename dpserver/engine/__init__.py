"""The engine: a scheduler that knows no tensor and a runner that knows no queue."""

from dpserver.engine.budget import Budget
from dpserver.engine.deviations import DeviationWatch, StructureFile
from dpserver.engine.engine import Engine, Request
from dpserver.engine.runner import ForceModel, Runner
from dpserver.engine.scheduler import Scheduler
from dpserver.engine.species import Assigner, Order

__all__ = [
    "Assigner",
    "Budget",
    "DeviationWatch",
    "Engine",
    "ForceModel",
    "Order",
    "Request",
    "Runner",
    "Scheduler",
    "StructureFile",
]
