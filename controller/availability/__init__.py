"""Handles outages of Redis: circuit breaker, snapshots, degraded mode, recovery and reconciliation."""
