"""Forwarding requests to workers."""
