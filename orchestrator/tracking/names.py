"""Which trackers there are: one row for each. A tracker is imported when a sweep names it."""

# Modules with a function `open_tracker(SweepRecord, Deployment) -> Tracker`.
TRACKERS = {
    "mlflow": "orchestrator.tracking.mlflow.tracker",
    "files": "orchestrator.tracking.files",
}
