"""A scan: one look at one appliance with the rules of a signature, and what was found."""
