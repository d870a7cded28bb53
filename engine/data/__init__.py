"""Data that the engine brings or reads: the demo's clip, test clips, DAVIS layouts."""
