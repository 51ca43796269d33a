"""Stores workers, bookings and leases in Redis, and runs the Lua scripts."""
