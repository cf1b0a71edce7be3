"""The engine: a scheduler that knows no tensor and a runner that knows no queue."""

from dpserver.engine.engine import Engine, Request
from dpserver.engine.runner import ForceModel, Runner
from dpserver.engine.scheduler import Budget, Scheduler
from dpserver.engine.species import Assigner, Order

__all__ = ["Assigner", "Budget", "Engine", "ForceModel", "Order", "Request", "Runner", "Scheduler"]
