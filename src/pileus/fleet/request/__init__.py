"""Requests: what a node shall do once, in order."""
