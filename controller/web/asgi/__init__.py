"""Bare ASGI: the HTTP protocol, endpoints and the hot path."""
