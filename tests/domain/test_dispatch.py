"""The rules themselves, in the smallest examples."""

from controller.domain.dispatch import Candidate, book, lottery, next_ticket, shortest_queue


def test_shortest_queue() -> None:
    slow, fast = Candidate("slow", 1, 2, turn=1), Candidate("fast", 4, 6, turn=2)
    assert shortest_queue([]) is None
    assert shortest_queue([slow, fast]) == fast
    assert shortest_queue([slow, Candidate("late", 2, 4, turn=0)]) == Candidate("late", 2, 4, turn=0)


def test_booking() -> None:
    assert book(Candidate("w", 2, 3, turn=1), turn=9) == Candidate("w", 2, 4, turn=9)


def test_lottery() -> None:
    early, late = Candidate("early", 1, 0, 1, ticket=0.5), Candidate("late", 1, 0, 0, ticket=0.7)
    assert lottery([]) is None
    assert lottery([late, early]) == early
    assert next_ticket(0.5, speed=4, deviate=2.0) == 1.0
