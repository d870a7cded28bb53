"""Training: `python -m engine.train --config NAME`."""
