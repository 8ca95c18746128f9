"""A monitor: what is watched, how often, and by whom."""
