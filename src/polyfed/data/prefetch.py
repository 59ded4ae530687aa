"""Fetching ahead: while one item is worked on, the next one is read from disk."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")


def ahead(fetch: Callable[[Item], Fetched], items: Iterable[Item]) -> Generator[Fetched, None, None]:
    """Yield ``fetch(item)`` for each item in order, while a background thread fetches the next one.

    The items, too, are drawn on that thread. An error of ``fetch`` or of ``items`` is raised where the item's result
    would have come. The thread has ended when the results are used up, an error was raised or the generator is closed,
    as it is when a loop over it is left; a fetch under way is waited for.
    """
    source = iter(items)

    def next_result() -> list[Fetched]:
        """Fetch one item; an empty list if there is none left."""
        for item in source:
            return [fetch(item)]
        return []

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="polyfed fetch") as thread:
        coming = thread.submit(next_result)
        while found := coming.result():
            coming = thread.submit(next_result)
            yield found.pop()
