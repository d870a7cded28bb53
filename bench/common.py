"""What the benchmark's command lines share."""

from __future__ import annotations

import argparse
import os

RESULTS = "results.jsonl"


def words(text: str) -> tuple[str, ...]:
    """An option's value, separated by commas."""
    return tuple(filter(None, text.split(",")))


def numbers(text: str) -> tuple[int, ...]:
    """An option's value: whole numbers from 1 on, separated by commas."""
    values = tuple(int(n) for n in words(text))
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers from 1 on")
    return values


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
