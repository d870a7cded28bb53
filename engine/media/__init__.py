"""Decoding, encoding and drawing: what stands behind `engine.video` and `engine.masks`."""
