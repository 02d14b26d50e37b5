"""MOPO: Model-based Offline Policy Optimization (Yu et al. 2020)."""
