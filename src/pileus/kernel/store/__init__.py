"""The store: one schema and one set of statements on two engines, with group commit."""
