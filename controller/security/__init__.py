"""Who may do what, and which addresses and paths are contacted: tokens, networks, workers and the audit log."""
