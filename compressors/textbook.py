"""ExactOBS as the paper writes it (Frantar & Alistarh 2022, algorithm 1): after every removal each row's whole inverse Hessian is
updated. Slow and plain: the oracle that the fast forms are tested against, and what runs where no compiler is."""

from __future__ import annotations

import torch
from torch import Tensor


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy order in which each row loses its weights, and what each removal costs.

    weight [rows, d], hinv [d, d] (H^-1), both float64. Returns order [rows, d], int64: the column removed at each step; and
    losses [rows, d]: w_p^2 / (2 [H^-1]_pp), the rise of the layer error at that step (eq. 3). Ties go to the lowest column.
    """
    rows, d = weight.shape
    w = weight.clone()
    h = hinv.expand(rows, d, d).clone()
    every = torch.arange(rows, device=w.device)
    gone = torch.zeros(rows, d, dtype=torch.bool, device=w.device)
    order = torch.empty(rows, d, dtype=torch.int64, device=w.device)
    losses = torch.empty_like(w)
    for step in range(d):
        diagonal = h.diagonal(dim1=1, dim2=2)
        score = (w**2 / diagonal).masked_fill(gone, torch.inf)
        p = score.argmin(1)
        order[:, step] = p
        losses[:, step] = score[every, p] / 2
        column, pivot = h[every, :, p], diagonal[every, p]
        w -= column * (w[every, p] / pivot)[:, None]
        root = column / pivot.sqrt()[:, None]
        h.baddbmm_(root[:, :, None], root[:, None, :], alpha=-1)
        gone[every, p] = True
        w[every, p] = 0
        h[every, p, :] = 0
        h[every, :, p] = 0
        h[every, p, p] = 1  # keeps the quotient finite; `gone` keeps it from being chosen
    return order, losses
