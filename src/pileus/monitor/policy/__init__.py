"""A policy: a condition over the appliance state table, and what is done then."""
