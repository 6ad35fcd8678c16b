"""Threads that give the same bytes however many they are."""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from refq.errors import InputError


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Let the system have what was freed: glibc's allocator keeps it, for each thread apart, and grows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class Workers:
    """A context in which linear algebra has one thread, so that its sums have one order.

    count: threads for tasks, None for as many as there are processors. Raises InputError for less than 1.
    """

    def __init__(self, count: int | None = None):
        if count is not None and count < 1:
            raise InputError(f"{count} workers; at least 1 is needed")
        self.count = count or processors()
        self._stack = ExitStack()

    def __enter__(self) -> "Workers":
        from threadpoolctl import threadpool_limits
        self._stack.enter_context(threadpool_limits(1))
        self._pool = None
        if self.count > 1:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.count))
        return self

    def __exit__(self, *error):
        if self._pool is not None and any(error):
            self._pool.shutdown(wait=False, cancel_futures=True)
        return self._stack.__exit__(*error)

    def map(self, function: Callable, items: Iterable) -> Iterator:
        """Results in the order of the items; not many more tasks are begun than are waited for."""
        if self._pool is None:
            yield from map(function, items)
            return
        begun = deque()
        for item in items:
            begun.append(self._pool.submit(function, item))
            if len(begun) >= self.count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
