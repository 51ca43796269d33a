"""Forwards requests to workers."""
