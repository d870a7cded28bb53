"""Threads with bounded queues: frames decoded ahead, results written behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_PATIENCE = 0.5  # seconds to wait for a thread that is to end


class Prefetcher(Generic[T]):
    """An iterator over ``iterable``; a background thread runs it up to ``depth`` items ahead.

    An exception of the iterable is raised here, after the items before it. ``close``
    (or leaving the ``with`` block) stops the thread and closes the iterable.
    With ``drop_oldest`` a full queue loses its oldest item instead of making the producer wait,
    as a live camera wants; ``dropped`` counts them.
    """

    def __init__(self, iterable: Iterable[T], depth: int = 4, drop_oldest: bool = False) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.dropped = 0
        self._depth, self._drop_oldest = depth, drop_oldest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._produce, args=(iterable,), name="prefetch", daemon=True
        )
        self._thread.start()

    def _produce(self, iterable: Iterable[T]) -> None:
        error: BaseException | None = None
        iterator = iter(())  # type: Iterator[T]
        try:
            iterator = iter(iterable)
            for item in iterator:
                if not self._put(item):
                    break
        except BaseException as caught:
            error = caught
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._error, self._finished = error, True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            while len(self._items) >= self._depth and not self._closed:
                if self._drop_oldest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def __iter__(self) -> Iterator[T]:
        return self

    def peek(self) -> T | None:
        """Return the next item without taking it, or None if it is not there yet."""
        with self._changed:
            return self._items[0] if self._items else None

    def __next__(self) -> T:
        with self._changed:
            while not (self._items or self._finished or self._closed):
                self._changed.wait()
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread, drop what it made ahead and wait a moment for it; callable twice."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        # A source can hang in a read; its thread, a daemon, is left to that.
        self._thread.join(timeout=_PATIENCE)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def prefetch(iterable: Iterable[T], depth: int = 4, drop_oldest: bool = False) -> Prefetcher[T]:
    """Run ``iterable`` up to ``depth`` items ahead in a background thread: see `Prefetcher`."""
    return Prefetcher(iterable, depth, drop_oldest)


class Worker:
    """Runs submitted calls in order in one background thread, with at most ``depth`` waiting.

    The first exception stops the work: it is raised by the next ``submit`` or ``close``, and the
    calls behind it are not run.
    """

    def __init__(self, depth: int = 8) -> None:
        self._depth = depth
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._closed):
                    self._changed.wait()
                if not self._calls:
                    return
                call, args = self._calls[0]
            try:
                call(*args)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._calls.clear()
                    self._closed = True
                    self._changed.notify_all()
                return
            # Kept in the queue until done, so that `depth` bounds the memory held.
            with self._changed:
                self._calls.popleft()
                self._changed.notify_all()

    def submit(self, call: Callable[..., object], *args: Any) -> None:
        """Queue ``call(*args)``; waits while ``depth`` calls are pending."""
        with self._changed:
            while len(self._calls) >= self._depth and self._error is None:
                self._changed.wait()
            self._raise()
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._calls.append((call, args))
            self._changed.notify_all()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Finish what was submitted, stop the thread, raise its error if it had one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()
