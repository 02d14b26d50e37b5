"""MOBILE: Model-Bellman Inconsistency Penalized Offline Policy Optimization (Sun et al. 2023)."""
