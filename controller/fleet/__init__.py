"""Keeps the registry up to date: membership, polling, refresh, sweep and parents."""
