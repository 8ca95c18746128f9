"""Shared by every suite."""
