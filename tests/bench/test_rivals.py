"""Adapters against fake checkouts that offer what the public ones do, and nothing of their code."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from bench import harness, run
from bench.rivals import parse_rival, style_of
from engine.errors import InputError

torch = pytest.importorskip("torch")

# A network that answers with what is bright: right on the frames of `clip` below.
COMMON = """
    import torch
    from torch import nn
    from torch.utils import model_zoo

    def aggregate(prob, dim=0, keep_bg=True):
        every = torch.cat([(1 - prob).prod(dim, keepdim=True), prob], dim)
        return every / every.sum(dim, keepdim=True)

    class Backbone(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 4, 1)
            self.load_state_dict(model_zoo.load_url("https://nowhere.invalid/resnet.pth"))
"""
XMEM = {
    "model/network.py": COMMON
    + """
    class XMem(nn.Module):
        def __init__(self, config, model_path=None):
            super().__init__()
            assert model_path is None
            config["key_dim"], config["value_dim"], config["hidden_dim"] = 64, 512, 64
            self.backbone = Backbone()

        def load_weights(self, state, init_as_zero_if_needed=False):
            self.load_state_dict(state)
    """,
    "inference/inference_core.py": """
    import torch
    from model.network import XMem, aggregate

    class InferenceCore:
        def __init__(self, network, config):
            assert config["hidden_dim"] == 64 and config["mem_every"] == 5
            assert {"enable_long_term_count_usage", "top_k", "deep_update_every"} <= config.keys()
            self.network, self.labels, self.time = network, None, -1

        def set_all_labels(self, labels):
            self.labels = labels

        def step(self, image, mask=None, valid_labels=None, end=False):
            self.time += 1
            assert image.ndim == 4 and image.shape[:2] == (1, 3) and image.dtype == torch.float32
            assert self.network.backbone(image).shape[1] == 4 and not self.network.training
            assert (mask is not None) == (self.time == 0)
            if mask is not None:
                assert mask.ndim == 3 and valid_labels == self.labels == [1, 2]
                return aggregate(mask)
            assert image.min() < 0, "normalised"
            bright = image[0, 0] > 1
            return aggregate(torch.stack([bright, ~bright & (image[0, 1] > 1)]).float())
    """,
}
STCN = {
    "model/eval_network.py": COMMON
    + """
    class STCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Backbone()

        def encode_key(self, frame):
            assert frame.ndim == 4 and frame.shape[2] % 16 == 0 and frame.shape[3] % 16 == 0
            self.frame = frame
            grid = frame[:, :1, ::16, ::16]
            return grid.expand(1, 64, -1, -1), grid, grid, frame, frame

        def encode_value(self, frame, f16, masks):
            assert masks.shape == (2, 1, *frame.shape[2:]) and frame.shape[:2] == (1, 3)
            return f16.expand(2, 512, -1, -1).unsqueeze(2)

        def segment_with_query(self, bank, f8, f4, key, f16):
            assert bank.frames, "asked before anything was remembered"
            bright = self.frame[0, 0] > 1
            other = ~bright & (self.frame[0, 1] > 1)
            return torch.stack([bright, other]).float()[:, None]
    """,
    "model/aggregate.py": "from model.eval_network import aggregate\n",
    "inference_memory_bank.py": """
    class MemoryBank:
        def __init__(self, k, top_k=20):
            assert k == 2
            self.frames = 0

        def add_memory(self, key, value, is_temp=False):
            assert key.shape[:3] == (1, 64, 1) and value.shape[:3] == (2, 512, 1)
            self.frames += 1
            print("remembered", self.frames)
    """,
    "util/tensor_util.py": """
    from torch.nn import functional as F

    def pad_divide_by(image, d):
        h, w = image.shape[-2:]
        pad = (0, -w % d, 0, -h % d)
        return F.pad(image, pad), pad

    def unpad(image, pad):
        return image[..., : image.shape[-2] - pad[3], : image.shape[-1] - pad[1]]
    """,
}
CUTIE = {
    "hydra.py": """
    import contextlib
    from omegaconf import Config

    @contextlib.contextmanager
    def initialize_config_dir(version_base, config_dir):
        assert config_dir.endswith("/cutie/config")
        yield

    def compose(config_name):
        assert config_name == "eval_config"
        return Config()
    """,
    "omegaconf.py": """
    import contextlib

    class Config:
        resolved = False

    @contextlib.contextmanager
    def open_dict(config):
        yield
    """,
    "cutie/inference/utils/args_utils.py": """
    def get_dataset_cfg(config):
        config.resolved = True
    """,
    "cutie/model/cutie.py": COMMON
    + """
    class CUTIE(nn.Module):
        def __init__(self, cfg, *, single_object=False):
            super().__init__()
            assert cfg.resolved
            self.cfg, self.backbone = cfg, Backbone()

        def load_weights(self, state, init_as_zero_if_needed=False):
            self.load_state_dict(state)
    """,
    "cutie/inference/inference_core.py": """
    import torch

    class InferenceCore:
        def __init__(self, network, cfg, *, image_feature_store=None):
            assert cfg is network.cfg
            self.time = -1

        def step(self, image, mask=None, objects=None, *, idx_mask=True, end=False):
            self.time += 1
            assert image.ndim == 3 and 0 <= image.min() and image.max() <= 1
            if mask is not None:
                assert objects == [1, 2] and mask.ndim == 2
                return torch.stack([mask == i for i in (0, 1, 2)]).float()
            bright = image[0] > 0.8
            other = ~bright & (image[1] > 0.8)
            return torch.stack([~bright & ~other, bright, other]).float()

        def output_prob_to_mask(self, prob):
            return prob.argmax(0)
    """,
}
CHECKOUTS = {"xmem": XMEM, "stcn": STCN, "cutie": CUTIE}


def checkout(root, style):
    for name, text in CHECKOUTS[style].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


@pytest.fixture
def two_boxes(monkeypatch):
    """Frames [T, 70, 90, 3] with a red and a green box that move, and the first's mask."""

    def clip(count, size, objects):
        frames = np.zeros((count, 70, 90, 3), np.uint8)
        for t, frame in enumerate(frames):
            frame[5:25, 5 + t : 25 + t, 0] = 255
            frame[40:60, 30 - t : 50 - t, 1] = 255
        mask = (frames[0, ..., 0] > 0) + 2 * (frames[0, ..., 1] > 0).astype(np.uint8)
        return frames, mask.astype(np.uint8)

    monkeypatch.setattr(harness, "demo_clip", clip)
    return clip


@pytest.mark.slow
@pytest.mark.parametrize("style", CHECKOUTS)
def test_a_checkout_runs_in_the_harness(tmp_path, two_boxes, style):
    root = checkout(tmp_path / "clone", style)
    assert style_of(root) == style
    weights = tmp_path / "weights.pth"
    torch.save({"backbone.weight": torch.ones(4, 3, 1, 1), "backbone.bias": torch.ones(4)}, weights)
    case = parse_rival(f"mine={root}:{weights}")
    kept = {}

    class Keeping(harness.Group):
        def _agreement(self):
            masks = np.fromfile(self.scratch / "masks-0.raw", np.uint8)
            kept["masks"] = masks.reshape(-1, *self.shape)

    plan = harness.Plan(("short", "prefilled", "long"), frames=8)
    log = (tmp_path / "log").open("w+b")
    rows = Keeping([case], plan, tmp_path, log, print).run()
    assert [r["clip"] for r in rows] == ["short", "prefilled 10x", "long"], rows
    assert rows[0]["status"] == rows[2]["status"] == harness.MEASURED and rows[2]["frames"] == 79
    assert rows[1]["status"].startswith("skipped: a rival's memory")
    assert rows[0]["random_weights"] is False and rows[0]["memory"] == "own"
    for mask, frame in zip(kept["masks"], two_boxes(8, 0, 2)[0][1:], strict=True):
        assert np.array_equal(mask == 1, frame[..., 0] > 0)
        assert np.array_equal(mask == 2, frame[..., 1] > 0)
    if style == "stcn":
        log.seek(0)
        printed = log.read().decode()
        # 8 frames before the second start, then 1 + 7 // 5, and at last 1 + 79 // 5.
        assert "remembered 16" in printed and "remembered 17" not in printed


@pytest.mark.slow
def test_a_rival_without_weights_downloads_nothing(tmp_path, two_boxes):
    case = parse_rival(f"mine={checkout(tmp_path, 'cutie')}")
    rows = run.measure([case], harness.Plan(("short",), frames=6), tmp_path / "log")
    assert [r["status"] for r in rows] == [harness.MEASURED]
    assert rows[0]["random_weights"] is True


@pytest.mark.slow
def test_a_rival_that_breaks_is_a_row(tmp_path, two_boxes):
    root = checkout(tmp_path, "xmem")
    core = root / "inference" / "inference_core.py"
    core.write_text(core.read_text().replace("self.time += 1", "raise OSError('no\\nmemory')"))
    rows = run.measure([parse_rival(f"mine={root}")], harness.Plan(frames=6), tmp_path / "log")
    assert [r["status"] for r in rows] == ["failed: OSError: no memory"]


@pytest.mark.parametrize("text", ["mine", "=x", "mine="])
def test_form_of_the_option(text):
    with pytest.raises(InputError, match="write it as NAME=PATH"):
        parse_rival(text)


def test_missing_weights(tmp_path):
    with pytest.raises(InputError, match="do not exist"):
        parse_rival(f"mine={checkout(tmp_path, 'stcn')}:{tmp_path / 'none.pth'}")
