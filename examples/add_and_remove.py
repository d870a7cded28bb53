"""Add an object in mid-video, correct one, and remove one: python examples/add_and_remove.py."""

import numpy as np

from engine import Segmenter, VideoWriter, open_source, overlay, read_mask
from engine.data.demo import CLIP, MASK

RABBIT, ROCKS = 1, 4  # ids are the caller's own, 1…255, gaps allowed


def main(out="add_and_remove.mp4"):
    source = open_source(CLIP)
    rabbit = read_mask(MASK, source.size).ids
    rocks = np.zeros_like(rabbit)
    rocks[300:430, 815:1180] = ROCKS  # a rough mask does

    with Segmenter.load() as seg, VideoWriter(out, source.size, source.fps) as writer:
        for frame in source.frames(end=24):
            if frame.index == 0:
                ids = seg.start(frame.image, rabbit)
            elif frame.index == 8:
                ids = seg.step(frame.image, rocks)  # new ids are added, known ones corrected
            else:
                if frame.index == 16:
                    seg.remove(RABBIT)  # the rocks are followed on
                ids = seg.step(frame.image)
            writer.write(overlay(frame.image, ids), frame.time)
            if frame.index in (0, 8, 16):
                print(f"frame {frame.index}: following {seg.ids}")


if __name__ == "__main__":
    main()
