"""What the command line does: segment, demo, evaluate, info."""
