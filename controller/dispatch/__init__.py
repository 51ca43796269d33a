"""Chooses a worker for each request."""
