"""Follow objects through a video file: python examples/file.py [VIDEO FIRST.png [OUT.mp4]].

Without arguments it takes the demo's clip.
"""

import sys

from engine import EngineError, Segmenter, VideoWriter, open_source, overlay, read_mask
from engine.data.demo import CLIP, MASK


def main(video=CLIP, first=MASK, out="followed.mp4"):
    source = open_source(video)
    mask = read_mask(first, source.size).ids
    with Segmenter.load() as seg, VideoWriter(out, source.size, source.fps) as writer:
        for frame in source.frames():
            ids = seg.step(frame.image) if frame.index else seg.start(frame.image, mask)
            writer.write(overlay(frame.image, ids), frame.time)
        print(f"{out}: {seg.stats.frames} frames at {seg.stats.fps:.1f} FPS on {seg.backend}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EngineError as error:
        sys.exit(f"error: {error}")
