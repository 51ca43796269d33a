"""Who may do what: tokens, networks and the audit log."""
