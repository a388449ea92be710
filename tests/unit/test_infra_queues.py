"""The queue by priority: urgent first, then old; nothing waits for ever; what is moved keeps its age."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.infra.queues import FAIR_EVERY, FairQueue, PriorityQueue


def drain(queue: PriorityQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def queue_of(*pushed: tuple[str, int], fair_every: int = 1_000) -> PriorityQueue[str]:
    queue: PriorityQueue[str] = PriorityQueue(fair_every)
    for item, priority in pushed:
        queue.push(item, priority)
    return queue


def test_the_higher_priority_goes_first_and_of_one_what_came_first() -> None:
    queue = queue_of(("a", 5), ("b", 9), ("c", 0), ("d", 9), ("e", 5))

    assert list(queue) == ["a", "b", "c", "d", "e"]
    assert drain(queue) == ["b", "d", "a", "e", "c"]
    with pytest.raises(IndexError):
        queue.pop()


def test_of_every_few_one_is_what_waits_longest() -> None:
    queue: PriorityQueue[str] = PriorityQueue()
    queue.push("old", 0)
    taken = []
    for number in range(FAIR_EVERY):
        queue.push(f"urgent-{number}", 9)
        taken.append(queue.pop())

    assert taken[-1] == "old"
    assert taken[:-1] == [f"urgent-{number}" for number in range(FAIR_EVERY - 1)]


def test_what_is_moved_keeps_its_age_in_its_new_priority() -> None:
    queue = queue_of(("a", 1), ("b", 5), ("c", 5))
    queue.move("a", 5)
    queue.move("c", 9)
    queue.move("nobody", 9)

    assert drain(queue) == ["c", "a", "b"]


def test_what_is_moved_away_and_back_is_there_once() -> None:
    queue = queue_of(("a", 1), ("b", 1))
    queue.move("a", 9)
    queue.move("a", 1)

    assert (len(queue), drain(queue), len(queue)) == (2, ["a", "b"], 0)


def test_what_is_taken_out_of_the_middle_does_not_come() -> None:
    queue = queue_of(("a", 1), ("b", 1), ("c", 1))
    queue.discard("b")
    queue.discard("b")
    queue.push("a", 9)  # there already: it stays

    assert "b" not in queue
    assert (len(queue), drain(queue)) == (2, ["a", "c"])


def test_what_comes_again_after_it_was_taken_out_is_young() -> None:
    queue = queue_of(("a", 1), ("b", 1))
    queue.discard("a")
    queue.push("a", 1)

    assert drain(queue) == ["b", "a"]


def test_cleared_it_is_empty() -> None:
    queue = queue_of(("a", 1))
    queue.clear()

    assert not queue
    assert list(queue) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=60))
def test_it_is_what_a_sorted_list_is(moves: list[tuple[int, int, int]]) -> None:
    queue: PriorityQueue[int] = PriorityQueue(4)
    model: list[tuple[int, int, int]] = []  # (number, item, priority)
    taken = 0
    for number, (what, item, priority) in enumerate(moves):
        place = next((place for place, entry in enumerate(model) if entry[1] == item), None)
        if what == 0:
            queue.push(item, priority)
            if place is None:
                model.append((number, item, priority))
        elif what == 1:
            queue.move(item, priority)
            if place is not None:
                model[place] = (model[place][0], item, priority)
        elif what == 2:
            queue.discard(item)
            if place is not None:
                del model[place]
        elif model:
            taken += 1
            oldest = min(model)
            wanted = oldest if taken % 4 == 0 else min(model, key=lambda entry: (-entry[2], entry[0]))
            model.remove(wanted)
            assert queue.pop() == wanted[1]
        assert list(queue) == [entry[1] for entry in sorted(model)]


# --- tenants


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_tenants_take_turns_whatever_they_have_waiting() -> None:
    queue: FairQueue[str] = FairQueue({"b": 2})
    for number in range(4):
        queue.push(f"a{number}", 5, "a")
    for number in range(4):
        queue.push(f"b{number}", 5, "b")
    queue.push("c0", 5, "c")

    assert drained(queue) == ["a0", "b0", "b1", "c0", "a1", "b2", "b3", "a2", "a3"]
    assert not queue


def test_what_keeps_its_number_keeps_its_place() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("late", 5, "a", 7)
    queue.push("early", 5, "a", 3)
    queue.push("later", 5, "a")

    assert drained(queue) == ["early", "late", "later"]


def test_who_is_taken_out_takes_nobodys_turn_and_the_rest_go_on() -> None:
    queue: FairQueue[str] = FairQueue()
    for tenant in ("a", "b"):
        queue.push(f"{tenant}0", 5, tenant)
        queue.push(f"{tenant}1", 5, tenant)
    queue.discard("a0")
    queue.discard("a1")
    queue.discard("nobody")
    queue.move("b1", 9)

    assert drained(queue) == ["b1", "b0"]
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=60), st.integers(1, 3))
def test_of_any_turns_of_all_each_tenant_with_something_waiting_has_its_part(what: Any, weight: int) -> None:
    """Between two turns of a tenant that has something waiting no other has more than its weight."""
    queue: FairQueue[str] = FairQueue({"a": weight})
    for number, (tenant, priority) in enumerate(what):
        queue.push(f"{tenant}{number}", priority, tenant)
    order = [item[0] for item in drained(queue)]

    assert len(order) == len(what)
    for tenant in set(order):
        turns = [place for place, found in enumerate(order) if found == tenant]
        for first, second in itertools.pairwise(turns):
            between = Counter(order[first + 1 : second])
            assert all(count <= (weight if other == "a" else 1) for other, count in between.items())
