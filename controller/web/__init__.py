"""The HTTP server: the routes of FastChat and our own."""
