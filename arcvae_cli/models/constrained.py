"""The most likely grid under conditions on extent and colours: missing colours go where they cost least."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from arcvae_cli.conditions import NOT_GIVEN, PLACE

# columns of the conditions, as slices: an index by a list would be copied to the device with every call
EXTENTS = slice(PLACE["height"], PLACE["width"] + 1)
COUNT = PLACE["colours"]
PRESENT = slice(PLACE["colour_1"], PLACE["colour_9"] + 1)

FEW_CELLS = 4  # cells of a colour that may all be images of one another: taking one would take the colour
TIE = 1e-3  # nats; logits of mirror images are equal but for rounding
COLOUR_PENALTY, MASKED_LOGIT = 1e3, -1e6  # nats, far beyond a network's output


def constrained_decode(logits: Tensor, conditions: Tensor | None) -> Tensor:
    """Colours (B, 16, 16) int64 from logits (B, 10, 16, 16) that satisfy conditions (B, A), if any.

    Cells that are equally likely to change, as mirror images are, change together: a symmetric grid stays symmetric.
    """
    colours = logits.argmax(dim=1)
    if conditions is None or bool((conditions == NOT_GIVEN).all()):
        return colours
    best, colour = logits[:, 1:].max(dim=1)  # (B, 16, 16)
    gain = best - logits[:, 0]
    for axis, extent in enumerate(conditions[:, EXTENTS].unbind(1)):  # the last row and column must not be all black
        line = torch.arange(colours.shape[1], device=colours.device) == (extent - 1)[:, None]  # (B, 16)
        line = line[:, :, None] if axis == 0 else line[:, None, :]
        dark = (extent > 0) & ~((colours > 0) & line).any(dim=(1, 2))
        colours = _change(colours, torch.where(line, gain, MASKED_LOGIT), colour + 1, dark, gain)
    for _ in range(logits.shape[1] - 1):  # one missing colour in each grid that lacks one
        cells = functional.one_hot(colours, logits.shape[1]).sum(dim=(1, 2))  # (B, 10)
        absent = cells[:, 1:] == 0
        wanted = absent & (conditions[:, PRESENT] == 1)
        short = (~absent).sum(dim=1) < conditions[:, COUNT]
        free = absent & (conditions[:, PRESENT] != 0) & short[:, None]
        choice = torch.where(wanted.any(dim=1, keepdim=True), wanted, free)  # (B, 9)
        gain = logits[:, 1:] - logits.gather(1, colours[:, None])  # (B, 9, 16, 16), minus the cost of a change
        rare = (cells.gather(1, colours.flatten(1)).view_as(colours) <= FEW_CELLS) & (colours > 0)
        allowed = torch.where(choice[:, :, None, None], gain - COLOUR_PENALTY * rare[:, None], MASKED_LOGIT)
        best, colour = allowed.max(dim=1)
        colours = _change(colours, best, colour + 1, choice.any(dim=1), best)
    return colours


def _change(colours: Tensor, gain: Tensor, into: Tensor, where: Tensor, everywhere: Tensor) -> Tensor:
    """In the grids `where`, change the cell of the highest `gain`, and those of the same colour that equal it."""
    best, cell = gain.flatten(1).max(dim=1, keepdim=True)
    colour = into.flatten(1).gather(1, cell)
    twin = (everywhere.flatten(1) - best).abs().le(TIE) & (into.flatten(1) == colour)
    twin = twin.scatter(1, cell, True) & where[:, None]
    return torch.where(twin, colour, colours.flatten(1)).view_as(colours)
