"""Who may do what, and which addresses are contacted: tokens, networks, workers and the audit log."""
