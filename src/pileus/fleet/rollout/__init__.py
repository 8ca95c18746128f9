"""Rollouts: a change of many nodes, wave after wave."""
