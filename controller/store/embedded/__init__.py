"""The embedded store: a Valkey server as a child process."""
