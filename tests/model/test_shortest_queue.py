"""The reference model of shortest_queue, in the smallest examples."""

from tests.model.load import Load
from tests.model.shortest_queue import CANDIDATES_PER_INDEX, Indexed, least_cost


def indexed(load: Load, seq: int) -> Indexed:
    return Indexed(load, seq, seq, load.index_cost(0.0, 1.0, decays=True), load.decay_key())


def test_the_first_of_an_index_is_chosen_if_all_clients_are_of_one_kind() -> None:
    leasing = [indexed(Load(1, leased=n), seq=n) for n in (2, 1, 3)]
    assert least_cost(leasing, leased=True, decays=True, reading=0, rate=1) is leasing[1]
    others = [indexed(Load(1, untracked=n), seq=n) for n in (2, 1, 3)]
    assert least_cost(others, leased=False, decays=True, reading=0, rate=1) is others[1]
    assert least_cost([], leased=True, decays=True, reading=0, rate=1) is None


def test_with_both_kinds_of_clients_the_best_of_the_first_of_both_indexes_is_chosen() -> None:
    with_leases_too = [indexed(Load(1, leased=1, untracked=9), seq=i) for i in range(CANDIDATES_PER_INDEX)]
    with_untracked_too = [indexed(Load(1, leased=9, untracked=1), seq=i) for i in range(CANDIDATES_PER_INDEX)]
    both = indexed(Load(1, leased=2, untracked=2), seq=0)
    for leased in (True, False):
        found = least_cost([*with_leases_too, both], leased=leased, decays=True, reading=0, rate=1)
        assert found is both, "its untracked load is the lowest"
        found = least_cost([*with_leases_too, both, *with_untracked_too], leased=leased, decays=True, reading=0, rate=1)
        assert found is with_leases_too[0], "the best worker is behind those that were read"
