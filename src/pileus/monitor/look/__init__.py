"""A look: the disks of one appliance are scanned by its host, for a scan."""
