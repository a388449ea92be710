"""The queue by priority: urgent first, then old; nothing waits for ever; what is moved keeps its age."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.infra.queues import FAIR_EVERY, PriorityQueue


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
