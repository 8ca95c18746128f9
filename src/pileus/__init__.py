"""Pileus turns Linux machines into a multi-tenant cloud."""

__version__ = "0.1.0"
