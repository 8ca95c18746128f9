"""What runs inside appliance VMs: Python, standard library only, imports nothing else of Pileus."""
