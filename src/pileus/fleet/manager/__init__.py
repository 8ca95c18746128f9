"""Managers: programs that run nodes for many accounts."""
