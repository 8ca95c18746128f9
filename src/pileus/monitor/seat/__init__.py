"""A seat: one use of an entitlement, checked out for an appliance, and returned when that ends."""
