"""All MLflow writing."""

from orchestrator.tracking.callback import MLflowCallback, job_of
from orchestrator.tracking.tracker import CELL, SWEEP, Tracker
from orchestrator.tracking.writer import ENSEMBLE, Ref

__all__ = ["CELL", "ENSEMBLE", "SWEEP", "MLflowCallback", "Ref", "Tracker", "job_of"]
