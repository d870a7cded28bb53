"""Still images, read from a list of formats, and folders of them as frames: uint8 RGB, upright."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import EngineError, InputError, TruncatedVideoError
from engine.files import sample_digest
from engine.media.picture import Image8
from engine.media.source import Frame, check_range, check_reached, size_change

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FOLDER_FPS = 24.0  # as DAVIS, whose folders are the usual ones
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width
# Pillow knows forty more; some run programs, such as Ghostscript, and few of them are looked after.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")


class UnreadableImage(Exception):
    """An image cannot be read; the text says why."""


@contextlib.contextmanager
def open_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open the image in a file of one of Pillow's ``formats``, to be decoded inside the block.

    Raises FileNotFoundError, and UnreadableImage for whatever Pillow raises, which can be anything.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UnreadableImage("it is not a file")
        with Image.open(path, formats=formats) as image:
            yield image
    except (FileNotFoundError, UnreadableImage, EngineError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"it is none of {', '.join(formats)}") from None
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (H, W) of an image as it is to be seen, told from its header."""
    # Pillow decodes a whole PNG to look for EXIF where the header names none.
    plain = image.format == "PNG" and "exif" not in image.info
    turned = not plain and image.getexif().get(0x0112) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def rgb(image: Image.Image) -> Image8:
    """Convert an image to uint8 RGB [H,W,3]: upright, 16 bits scaled to 8, alpha over black."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16-bit grey comes as I;16 or I, by Pillow's version
        grey = np.asarray(image).astype(np.float32)
        scale = 255.0 if image.mode == "F" else 1 / 257
        grey8 = np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")), dtype=np.uint8)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts ``frame2`` before ``frame10``; equal numbers by their spelling."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts]


class ImageFolder:
    """A `Source` of the images in ``folder``, in natural order of their names.

    Raises InputError for a folder without images, an unreadable one, or images of several sizes.
    """

    live = False
    fps = FOLDER_FPS
    missing = damaged = 0

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        try:
            entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            raise InputError(
                f"'{folder}' cannot be read: {error.strerror}; check its permissions"
            ) from None
        self.paths = sorted((p for p in entries if p.suffix.lower() in SUFFIXES), key=natural_key)
        if not self.paths:
            raise InputError(
                f"'{folder}' has no images in it; pass a video, or a folder of PNG or JPEG files"
            )
        self.frame_count: int | None = len(self.paths)
        self.size = _size(self.paths[0])
        # Headers only: a wrong size shows now, not after an hour of work.
        for path in self.paths[1:]:
            if (size := _size(path)) != self.size:
                raise size_change(f"'{path}'", size, self.size)

    def fingerprint(self) -> str:
        """See `Source`: of the images alone, whatever else the folder holds."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path.name) + f" {sample_digest(path)}\n".encode())
        return digest.hexdigest()

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """See `Source.frames`; the time is that of `FOLDER_FPS` frames a second."""
        check_range(start, end, every)
        check_reached(start, len(self.paths), self.name)
        for index in range(start, min(end or len(self.paths), len(self.paths)), every):
            path = self.paths[index]
            try:
                with open_image(path) as image:
                    pixels = rgb(image)
            except (OSError, UnreadableImage) as error:
                raise TruncatedVideoError(
                    f"image {index}, '{path}', is damaged ({error}); results before it are kept; "
                    "replace the file"
                ) from None
            yield Frame(index, index / FOLDER_FPS, pixels)

    def close(self) -> None:
        """Do nothing: no file stays open between frames."""


def _size(path: Path) -> tuple[int, int]:
    try:
        with open_image(path) as image:
            return upright_size(image)
    except (OSError, UnreadableImage) as error:
        raise InputError(f"'{path}' is not a readable image ({error}); replace the file") from None
