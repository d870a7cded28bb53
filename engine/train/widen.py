"""A wider network that begins as a narrower one (Chen et al., "Net2Net", ICLR 2016).

What the narrow network has goes into some channels of the wide one, and these read none of the
others; so the wide one begins with the narrow one's outputs, and what it has more can be learnt.
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

    After the stage "features" the student's key, value and compressed feature are the teacher's,
    and heads map its backbone's features to the teacher's; so the teacher's decoder fits behind it
    once its skip convolutions take the heads in. heads: weight [c, in, 1, 1] and bias [c] for
    strides 16, 8 and 4.
    """
    theirs = teacher.decode.state_dict()
    for up, (weight, bias) in zip(("up8", "up4"), heads[1:], strict=True):
        skip = theirs[f"{up}.skip.weight"]
        theirs[f"{up}.skip.weight"] = torch.einsum("ockl,ci->oikl", skip, weight[:, :, 0, 0])
        theirs[f"{up}.skip.bias"] = theirs[f"{up}.skip.bias"] + skip.sum((2, 3)) @ bias
    for name, parameter in student.decode.named_parameters():
        embed(parameter, theirs[name], (teacher.config.value_dim, student.config.value_dim))


@torch.no_grad()
def embed(wide: Tensor, narrow: Tensor, value_dims: tuple[int, int]) -> None:
    """Copy ``narrow`` into the channels of ``wide`` that stand for its own; in place.

    Both [out, in, h, w] or [out]. These outputs do not read the other inputs; the other outputs
    stay. value_dims: the widths V of narrow and wide, see :func:`places`.
    """
    sizes = zip(narrow.shape[:2], wide.shape[:2], strict=True)
    rows, *columns = (places(n, w, value_dims) for n, w in sizes)
    grown = torch.zeros(len(rows), *wide.shape[1:], dtype=wide.dtype)
    if columns:
        grown[:, columns[0]] = narrow
    else:
        grown[:] = narrow
    wide[rows] = grown


def places(narrow: int, wide: int, value_dims: tuple[int, int]) -> Tensor:
    """Where each of ``narrow`` channels is among ``wide`` ones: indices [narrow].

    Channels that are several parts of V each, such as readout beside query, keep to their part;
    all others are the first ones. It depends on the two numbers alone, so that every layer agrees.
    """
    old, new = value_dims
    at = torch.arange(narrow)
    if narrow % old == 0 and wide == narrow // old * new:
        return at // old * new + at % old
    return at
