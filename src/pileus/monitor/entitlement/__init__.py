"""An entitlement: how many may use something, until when, and what becomes of more."""
