"""A leg: what a mirror session has on one host."""
