"""Data to train on."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training import training_folder

from engine.train.config import DEVELOPMENT
from engine.train.data import Clips
from engine.train.sources import load_davis, load_stills


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`training_folder`; tests leave it as it is."""
    return training_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def clips(data: Path) -> Clips:
    """What is drawn from ``data`` for development."""
    return Clips(load_davis([data / "davis"], DEVELOPMENT), load_stills(data / "stills"))
