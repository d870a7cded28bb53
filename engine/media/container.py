"""How large a video's file should be, by its own headers."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"}


def told_size(path: Path) -> int:
    """Return the size of a Matroska, AVI or MP4 file by its own headers; 0 if untold."""
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF":
            told = int.from_bytes(head[4:8], "little")
            return 8 + told if told != 0xFFFFFFFF else 0
        if head[:4] == b"\x1aE\xdf\xa3":
            return _matroska_size(head)
        return _mp4_size(file) if head[4:8] in _BOXES else 0


def _matroska_size(head: bytes) -> int:
    place = head.find(b"\x18S\x80g") + 4  # the Segment, which holds all but the EBML header
    if place < 4 or place >= len(head) or not head[place]:
        return 0
    width = 9 - head[place].bit_length()
    bits = 7 * width
    told = int.from_bytes(head[place : place + width], "big") & ((1 << bits) - 1)
    return place + width + told if told != (1 << bits) - 1 else 0  # all ones: unknown


def _mp4_size(file: BinaryIO) -> int:
    """Return the end of the last box at the top level."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return place
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: up to the end of the file; less is no box
            return 0
        place += size
