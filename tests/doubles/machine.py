"""A GPU that has no hardware: memory is the host's, and work on streams is put off.

A driver is free to run streams in any order that events and streams allow. This machine uses that
freedom against the program: nothing runs before someone waits for it, and then a *policy* picks
among all that may run. A missing event or wait so becomes a wrong result, not a rare one.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

ALIGN = 256
POISON = 0xFF  # NaN in fp16 and fp32, −1 in integers


class Misuse(AssertionError):
    """The program did what a GPU would answer by corrupt memory or a crash."""


@dataclass(eq=False)
class Block:
    """An allocation. ``kind``: ``device`` or ``pinned``."""

    kind: str
    address: int
    size: int
    owner: np.ndarray

    @property
    def bytes(self) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))


@dataclass(eq=False)
class Op:
    """Work on a stream: ``run`` once all of ``after`` are done."""

    name: str
    run: Callable[[], None]
    stream: int
    after: tuple[Op, ...] = ()
    done: bool = False


@dataclass(eq=False)
class Graph:
    """What a capture recorded, in order."""

    ops: list[Op] = field(default_factory=list)
    valid: bool = True


Policy = Callable[[list[Op]], Op]


def oldest(ready: list[Op]) -> Op:
    """In the order in which the work was put on streams."""
    return ready[0]


def newest(ready: list[Op]) -> Op:
    """The stream that got work last first."""
    return ready[-1]


def shuffled(seed: int) -> Policy:
    """Any order."""
    return random.Random(seed).choice


class Machine:
    """One GPU of ``total`` bytes.

    ahead: whether a wait also runs work that nobody waited for, as the policy picks; else only what
        must be done before, so that all other work comes as late as it can.
    """

    def __init__(self, total: int = 1 << 30, policy: Policy = oldest, ahead: bool = False) -> None:
        self.total, self.policy, self.ahead = total, policy, ahead
        self.blocks: dict[int, Block] = {}
        self._freed: deque[Block] = deque(maxlen=256)  # so that no address comes back soon
        self.streams: dict[int, list[Op]] = {}  # the last op of each, to come after
        self.events: dict[int, Op | None] = {}
        self.graphs: dict[int, Graph] = {}
        self.executables: dict[int, Graph] = {}
        self.capturing: dict[int, Graph] = {}
        self.pending: list[Op] = []
        self.contexts = 0
        self.libraries: dict[int, bytes] = {}
        self.log: list[str] = []  # names of what ran
        self._next = 1000

    # Handles and memory

    def handle(self) -> int:
        self._next += 8
        return self._next

    def allocate(self, size: int, kind: str) -> int | None:
        """The address of new, poisoned memory; None if the device has no more."""
        used = sum(b.size for b in self.blocks.values() if b.kind == "device")
        if kind == "device" and used + size > self.total:
            return None
        owner = np.full(size + 2 * ALIGN, POISON, np.uint8)
        address = -(-owner.ctypes.data // ALIGN) * ALIGN
        self.blocks[address] = Block(kind, address, size, owner)
        return address

    def free(self, address: int, kind: str) -> None:
        block = self.blocks.get(address)
        if block is None or block.kind != kind:
            raise Misuse(f"{address:#x} is freed, but it is no {kind} memory that was allocated")
        block.bytes[:] = POISON
        self._freed.append(self.blocks.pop(address))

    def view(self, address: int, size: int, kind: str = "device") -> np.ndarray:
        """The bytes of live memory; raises Misuse for any other."""
        for block in self.blocks.values():
            if block.address <= address and address + size <= block.address + block.size:
                if block.kind != kind:
                    raise Misuse(f"{address:#x} is {block.kind} memory, used as {kind} memory")
                start = address - block.address
                return block.bytes[start : start + size]
        raise Misuse(f"{size} bytes at {address:#x} are not in one live allocation")

    def array(self, address: int, shape: Iterable[int], dtype: object) -> np.ndarray:
        """Device memory as an array."""
        shape = tuple(shape)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.view(address, size).view(dtype).reshape(shape)

    # Streams

    def put(self, stream: int, name: str, run: Callable[[], None]) -> None:
        """Add work to a stream, or to the graph that it records."""
        if stream in self.capturing:
            self.capturing[stream].ops.append(Op(name, run, stream))
            return
        self._add(stream, name, run, ())

    def _add(self, stream: int, name: str, run: Callable[[], None], after: tuple[Op, ...]) -> Op:
        if stream not in self.streams:
            raise Misuse(f"{name} on a stream that does not exist")
        op = Op(name, run, stream, (*self.streams[stream], *after))
        self.streams[stream] = [op]
        self.pending.append(op)
        return op

    def launch(self, graph: Graph, stream: int) -> None:
        """Put a graph's work on a stream. It was captured from one stream, and so is a line."""
        for op in graph.ops:
            self._add(stream, op.name, op.run, ())

    def record(self, event: int, stream: int) -> None:
        self.events[event] = self._add(stream, "record", lambda: None, ())

    def wait(self, stream: int, event: int) -> None:
        op = self.events[event]
        if op is not None:
            self._add(stream, "wait", lambda: None, (op,))

    # Execution

    def finish(self, wanted: Iterable[Op]) -> None:
        """Run until all of ``wanted`` are done, and whatever else the policy likes."""
        wanted = [op for op in wanted if not op.done]
        needed: set[int] = set()
        todo = list(wanted)
        while todo:
            op = todo.pop()
            if not op.done and id(op) not in needed:
                needed.add(id(op))
                todo += op.after
        while any(not op.done for op in wanted):
            ready = [
                op
                for op in self.pending
                if (self.ahead or id(op) in needed) and all(a.done for a in op.after)
            ]
            op = self.policy(ready)
            op.run()
            op.done, op.after = True, ()
            self.pending.remove(op)
            if op.name not in ("record", "wait"):
                self.log.append(op.name)

    def finish_stream(self, stream: int) -> None:
        self.finish(self.streams[stream])

    def finish_event(self, event: int) -> None:
        op = self.events[event]
        if op is not None:
            self.finish([op])

    def live(self) -> dict[str, int]:
        """How much of each kind exists: what a clean release brings back to zero."""
        kinds = [b.kind for b in self.blocks.values()]
        return {
            "device": kinds.count("device"),
            "pinned": kinds.count("pinned"),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs) + len(self.executables),
            "libraries": len(self.libraries),
            "contexts": self.contexts,
            "pending": len(self.pending),
        }
