"""Gateways: routers and what they do for a tenant's networks."""
