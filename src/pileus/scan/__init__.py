"""Looks for signatures of malicious software: in disks from outside, in streams, by rules that tenants may bring."""
