"""Access of callers, and the addresses and paths that are contacted: tokens, networks, workers, the audit log."""
