"""COMBO: Conservative Offline Model-Based Policy Optimization (Yu et al. 2021)."""
