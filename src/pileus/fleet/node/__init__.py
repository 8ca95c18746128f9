"""Nodes: appliance VMs that are configured over the backchannel."""
