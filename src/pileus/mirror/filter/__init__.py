"""A filter: which packets a mirror session takes."""
