"""What the tests share: inputs that are made, networks, worker processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
