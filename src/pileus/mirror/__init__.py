"""Mirrors: a tenant watches its own packets, in a VM of its own, in a file or live."""
