"""Soft actor-critic for a stack of seeds: what every algorithm here builds on."""
