"""The engine: a scheduler that knows no tensor and a runner that knows no queue."""

from dpserver.engine.budget import Budget
from dpserver.engine.companions import Accompanied
from dpserver.engine.deviations import DeviationWatch, StructureFile
from dpserver.engine.engine import Engine, Request
from dpserver.engine.parameters import Parameters
from dpserver.engine.runner import ForceModel, Runner
from dpserver.engine.scheduler import Scheduler
from dpserver.engine.species import Assigner, Order, TypedOrder

__all__ = [
    "Accompanied",
    "Assigner",
    "Budget",
    "DeviationWatch",
    "Engine",
    "ForceModel",
    "Order",
    "Parameters",
    "Request",
    "Runner",
    "Scheduler",
    "StructureFile",
    "TypedOrder",
]
