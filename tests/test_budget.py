"""Which data type each layer gets under a budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refq.models.budget import Option, _noise, allocate

COSTS = st.integers(0, 50)
LADDER = st.lists(st.tuples(st.integers(1, 9), COSTS), min_size=1, max_size=3,
                  unique_by=lambda pair: pair[0])


def options(*pairs):
    return [Option(None, bits, cost) for bits, cost in pairs]


def taken(several, room):
    found = allocate(several, room)
    return None if found is None else [option.bits for option in found]


def test_bits_go_where_they_buy_most():
    several = [options((4, 10), (8, 1)), options((4, 3), (8, 2)), options((4, 6), (8, 1))]
    assert taken(several, 12) == [4, 4, 4]
    assert taken(several, 16) == [8, 4, 4]
    assert taken(several, 20) == [8, 4, 8]
    assert taken(several, 24) == [8, 8, 8]
    assert taken(several, 11.99) is None


def test_a_type_off_the_hull_is_never_taken():
    """6 bits save less a bit than going straight to 8 does."""
    several = [options((4, 10), (6, 9.5), (8, 0))]
    assert taken(several, 7) == [4] and taken(several, 8) == [8]


def test_a_type_that_costs_more_and_is_larger_is_never_taken():
    assert taken([options((4, 1), (8, 2))], 100) == [4]


def test_a_step_too_large_leaves_room_for_others():
    several = [options((40, 100), (80, 0)), options((4, 3), (8, 2))]
    assert taken(several, 50) == [40, 8]


def test_a_layer_of_one_choice_counts():
    assert taken([options((8, 5)), options((4, 5), (8, 0))], 12) == [8, 4]


@settings(max_examples=200, deadline=None)
@given(st.lists(LADDER, min_size=1, max_size=4), st.integers(1, 40))
def test_the_allocation_fits_and_is_as_good_as_the_best_smaller_one(pairs, room):
    """Greedy on the hull is optimal at its own number of bits: nothing that takes no more costs less."""
    several = [options(*each) for each in pairs]
    found = allocate(several, room)
    if min(sum(o.bits for o in pick) for pick in itertools.product(*several)) > room:
        assert found is None
        return
    bits, cost = sum(o.bits for o in found), sum(o.cost for o in found)
    assert bits <= room
    lowest = [min(each, key=lambda o: (o.bits, o.cost)) for each in several]
    assert cost <= sum(o.cost for o in lowest)
    skipped = [o for each in several for o in each if o.bits > room]
    if not skipped:
        relaxed = _fraction_bound(several, bits)
        assert cost >= relaxed - 1e-9


def _fraction_bound(several, bits):
    """A lower bound of the cost at so many bits: linear programming by brute force over multipliers."""
    best = -np.inf
    for price in np.linspace(0, 60, 601):
        best = max(best, sum(min(o.cost + price * o.bits for o in each) for each in several) - price * bits)
    return best


@pytest.mark.parametrize("room", range(12, 40))
def test_more_room_never_costs_more(room):
    several = [options((4, 10), (6, 4), (8, 1)), options((4, 3), (6, 2.5), (8, 2)), options((4, 6), (8, 1))]
    more, less = (sum(o.cost for o in allocate(several, r)) for r in (room + 1, room))
    assert more <= less


def test_an_output_of_another_length_has_a_cost():
    """As one that is picked by its values."""
    assert _noise(np.ones(3), np.ones(4)) == 1.0 and _noise(np.ones(3), np.ones(3)) == 0.0
