"""Helpers for the choices of a dispatch."""

from collections.abc import Iterable

from controller.store.registry import Choice


def workers_of(choices: Iterable[Choice]) -> list[str]:
    return [choice.worker for choice in choices]


def leases_of(choices: Iterable[Choice]) -> list[str]:
    return [choice.lease for choice in choices]


def worker_of_lease(lease: str) -> str:
    return lease.partition("@")[2]


def texts_of(choices: Iterable[Choice]) -> list[str]:
    """Return each choice as one text: its lease if it has one, otherwise its worker."""
    return [choice.lease or choice.worker for choice in choices]


def worker_of(text: str) -> str:
    """Return the worker of a text of texts_of()."""
    return worker_of_lease(text) if "@" in text else text
