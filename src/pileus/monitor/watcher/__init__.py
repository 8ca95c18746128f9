"""A watcher: one of those that do a monitor's work, under a lease."""
