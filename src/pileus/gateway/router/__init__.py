"""Routers: the routing appliances of an account in a zone."""
