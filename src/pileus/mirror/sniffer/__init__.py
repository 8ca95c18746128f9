"""A sniffer: a NIC of a VM that gets mirrored packets."""
