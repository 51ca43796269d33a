"""Keeping the registry true: membership, polling, refresh, sweep and parents."""
