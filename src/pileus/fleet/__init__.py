"""Fleets: nodes, the appliances of a manager."""
