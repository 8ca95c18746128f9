"""Consents: which manager may act in an account."""
