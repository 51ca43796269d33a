"""Defines workers, leases, costs and errors. Uses only the standard library, does no I/O and reads no clock."""
