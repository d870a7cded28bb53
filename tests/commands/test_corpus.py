"""Three hundred damaged inputs, the same in every run: see `torture.run`, which makes others."""

from __future__ import annotations

import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks")]


def test_damaged_inputs_end_in_order(tmp_path, monkeypatch):
    """No traceback, signal, hang or gigabytes; an error is one line with exit code 2 or 3."""
    from torture.run import Attack, use_fake

    import engine.commands.loop
    from engine.segmenter import Segmenter

    monkeypatch.setattr(Segmenter, "load", Segmenter.load)  # to be restored
    monkeypatch.setattr(engine.commands.loop, "RESUME_SECONDS", engine.commands.loop.RESUME_SECONDS)
    use_fake()
    attack = Attack(tmp_path, seed=0)
    attack.fuzz(until=float("inf"), most=300)
    assert attack.tried["fuzz"] == 300 and attack.found == []
