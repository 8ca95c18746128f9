"""Reads, checks and writes OVF packages (DMTF DSP0243); useful by itself, imports nothing else of Pileus.

``package`` is the way in: ``open_package`` and ``open_stream``, then ``contents``; a package is refused by ``OvfFault``.
``model`` has what a descriptor says, ``machines`` what that means for a VM, ``properties`` what its user may set.
"""
