"""Fetching ahead: in order, one item ahead, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from polyfed.data.prefetch import ahead

PATIENCE = 30.0  # seconds; only a test that fails waits that long


class Fetcher:
    """Squares numbers, and remembers what was begun, what was done and on which threads."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.begun = [threading.Event() for _ in range(6)]
        self.done: list[int] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, item: int) -> int:
        self.threads.add(threading.current_thread())
        self.begun[item].set()
        if item == self.fails_at:
            raise OSError(f"item {item} is damaged")
        self.done.append(item)
        return item * item

    def assert_ended(self) -> None:
        assert len(self.threads) == 1
        assert self.threads != {threading.current_thread()}
        assert not any(thread.is_alive() for thread in self.threads)


def test_every_item_is_fetched_in_order() -> None:
    fetch = Fetcher()
    assert list(ahead(fetch, range(6))) == [0, 1, 4, 9, 16, 25]
    assert fetch.done == list(range(6))
    fetch.assert_ended()


def test_of_no_items_nothing_comes() -> None:
    assert list(ahead(Fetcher(), [])) == []


def test_results_that_count_as_false_do_not_end_it() -> None:
    assert list(ahead(lambda item: None, range(3))) == [None] * 3


def test_the_next_item_is_fetched_while_one_is_worked_on_and_no_further_one() -> None:
    fetch = Fetcher()
    results = ahead(fetch, range(6))
    assert not fetch.begun[0].is_set()
    assert next(results) == 0
    assert fetch.begun[1].wait(PATIENCE)
    assert not fetch.begun[2].is_set()
    assert next(results) == 1
    assert fetch.begun[2].wait(PATIENCE)
    assert not fetch.begun[3].is_set()
    results.close()
    fetch.assert_ended()


def test_an_error_is_raised_in_the_place_of_its_item() -> None:
    fetch = Fetcher(fails_at=2)
    results = ahead(fetch, range(6))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="item 2 is damaged"):
        next(results)
    assert not fetch.begun[3].is_set()
    fetch.assert_ended()


def test_an_error_of_the_items_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise LookupError("no more items")

    fetch = Fetcher()
    results = ahead(fetch, items())
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(LookupError, match="no more items"):
        next(results)
    fetch.assert_ended()


def leave(results: Iterator[int]) -> None:
    for _ in results:
        break


def fail(results: Iterator[int]) -> None:
    for _ in results:
        raise ZeroDivisionError


@pytest.mark.parametrize("stop", [leave, fail])
def test_a_consumer_that_stops_waits_for_the_fetch_under_way(stop: Callable[[Iterator[int]], None]) -> None:
    fetch = Fetcher()

    def slowly(item: int) -> int:
        time.sleep(0.05)
        return fetch(item)

    try:
        stop(ahead(slowly, range(6)))
    except ZeroDivisionError:
        assert stop is fail
    assert fetch.done == [0, 1]
    fetch.assert_ended()
