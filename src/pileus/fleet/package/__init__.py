"""Packages: what a manager's nodes are made of."""
