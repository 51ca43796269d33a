"""Redis may be away: the circuit breaker, the snapshot, degraded mode, recovery and reconciliation."""
