"""Reads, checks and writes OVF packages (DMTF DSP0243); useful by itself, imports nothing else of Pileus.

``reading.open_package`` is the way in; ``model`` has what a descriptor says, ``machines`` what that means for a VM.
"""
