"""Dynamics ensembles: training them once, rollouts in them, penalties for their uncertainty."""
