"""A whole cloud on one machine: server and agent in one process, furnished to be used at once."""
