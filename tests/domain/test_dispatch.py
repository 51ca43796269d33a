"""The rules themselves, in the smallest examples."""

from controller.domain.dispatch import LOOK, Candidate, Indexed, book, least_cost, lottery, next_ticket, shortest_queue
from controller.domain.load import Load


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


def indexed(load: Load, turn: int) -> Indexed:
    return Indexed(load, turn, turn, load.index_cost(0.0, 1.0, fades=True), load.what_fades())


def test_the_first_of_an_index_is_the_one_where_all_clients_are_of_one_kind() -> None:
    leasing = [indexed(Load(1, leased=n), turn=n) for n in (2, 1, 3)]
    assert least_cost(leasing, leased=True, fades=True, phase=0, pace=1) is leasing[1]
    others = [indexed(Load(1, unleased=n), turn=n) for n in (2, 1, 3)]
    assert least_cost(others, leased=False, fades=True, phase=0, pace=1) is others[1]
    assert least_cost([], leased=True, fades=True, phase=0, pace=1) is None


def test_where_they_are_not_it_is_the_best_of_the_first_of_both() -> None:
    half_leased = [indexed(Load(1, leased=1, unleased=9), turn=i) for i in range(LOOK)]
    half_not = [indexed(Load(1, leased=9, unleased=1), turn=i) for i in range(LOOK)]
    both = indexed(Load(1, leased=2, unleased=2), turn=0)
    for leased in (True, False):
        found = least_cost([*half_leased, both], leased=leased, fades=True, phase=0, pace=1)
        assert found is both, "what fades of it is the least"
        found = least_cost([*half_leased, both, *half_not], leased=leased, fades=True, phase=0, pace=1)
        assert found is half_leased[0], "nobody looked so far"
