"""eBPF without a compiler: an assembler, and the calls of bpf(2) that load, attach and read. Knows no program."""
