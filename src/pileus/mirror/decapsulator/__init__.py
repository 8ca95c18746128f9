"""A decapsulator: the appliance through which the mirrored packets of many tenants go."""
