"""A mirror session: the packets of a NIC, as they are copied, carried and kept or given to a sniffer."""
