"""Follow what a camera sees: python examples/webcam.py [CAMERA [SECONDS]]; Ctrl-C ends it earlier.

Hold something in the middle of the picture: what lies in an ellipse there is followed. CAMERA is a
number, on Windows dshow://video=NAME, or a stream's URL. The result is webcam.mp4.
"""

import sys

import numpy as np

from engine import EngineError, Segmenter, VideoWriter, open_source, overlay, prefetch


def middle(height, width):
    """A mask [H, W] with object 1 in an ellipse of a third of the picture's sides."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (x**2 + y**2 < (1 / 3) ** 2).astype(np.uint8)


def main(camera="0", seconds="20", out="webcam.mp4"):
    source = open_source(camera)
    # A camera does not wait: frames that come while the network works are left out.
    frames = prefetch(source.frames(), depth=1, drop_oldest=source.live)
    with frames, Segmenter.load() as seg, VideoWriter(out, source.size, source.fps) as writer:
        try:
            ids = None
            for frame in frames:
                if ids is None:
                    ids = seg.start(frame.image, middle(*source.size))
                else:
                    ids = seg.step(frame.image)
                writer.write(overlay(frame.image, ids), frame.time)
                print(f"\r{seg.stats.fps:5.1f} FPS {'lost' if seg.lost else '    '}", end="")
                if frame.time >= float(seconds):
                    break
        except KeyboardInterrupt:
            pass  # what was seen so far is kept
    print(f"\n{out}: {seg.stats.frames} frames, {frames.dropped} left out")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EngineError as error:
        sys.exit(f"error: {error}")
