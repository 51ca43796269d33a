"""Choosing a worker for a request."""
