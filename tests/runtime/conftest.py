"""Bundles for the stand-in GPU."""

from __future__ import annotations

import pytest
from doubles.rig import Made, toy_bundle
from doubles.videos import SIZE


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Bundles for the stand-in GPU, for 1, 2 and 4 objects, whose engines are no networks."""
    out = tmp_path_factory.mktemp("bundles")
    return [toy_bundle(out, k, SIZE) for k in (1, 2, 4)]
