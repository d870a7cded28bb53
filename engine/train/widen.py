"""A wider student that begins as its teacher (Chen et al., "Net2Net", ICLR 2016).

After the first stage (features.py) the student's key, value and compressed feature are the
teacher's, and its heads map its backbone's features to the teacher's. So the teacher's decoder fits
behind it: the skip convolutions take the heads in, and what is wider than the teacher gets new
channels that the old ones do not read at first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model import MobileVOS


@torch.no_grad()
def take_over_decoder(
    student: MobileVOS, teacher: MobileVOS, heads: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Give ``student`` the decoder of ``teacher``, both with batch norms folded, in place.

    heads: weight [c, in, 1, 1] and bias [c] of the 1×1 convolutions from the student's features at
    strides 16, 8 and 4 to the teacher's.
    """
    ours, theirs = dict(student.decode.named_parameters()), teacher.decode.state_dict()
    for up, (weight, bias) in zip(("up8", "up4"), heads[1:], strict=True):
        skip = theirs[f"{up}.skip.weight"]
        theirs[f"{up}.skip.weight"] = torch.einsum("ockl,ci->oikl", skip, weight[:, :, 0, 0])
        theirs[f"{up}.skip.bias"] = theirs[f"{up}.skip.bias"] + skip.sum((2, 3)) @ bias
    for name, parameter in ours.items():
        embed(parameter, theirs[name])


def embed(wide: Tensor, narrow: Tensor) -> None:
    """Copy ``narrow`` into the first channels of ``wide``; these read none of the others."""
    outputs = narrow.shape[0]
    if wide.dim() > 1:
        wide[:outputs, narrow.shape[1] :] = 0
        wide[:outputs, : narrow.shape[1]] = narrow
    else:
        wide[:outputs] = narrow
