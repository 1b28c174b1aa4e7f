"""Eliminations in the order of the columns, the same for all rows, beside ExactOBS's greedy ones:
GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2022, "GPTQ") and SparseGPT (Frantar and Alistarh
2023, "SparseGPT"). One factor serves every row, and a column costs rows x d operations: d times
less than a greedy order, which is each row's own.

With H^-1 = U^T U, U upper triangular, row i of U is what lemma 1 of "Optimal Brain Compression"
leaves of H^-1 once the columns before i are gone: [H^-1_i]_ii = U_ii^2, and column i moves the
later ones by -U_ij (w_i - q_i) / U_ii (GPTQ, equations 2 to 4 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apportion.compressors.grids import Grid, joined

BATCH = 128
"""Columns whose moves reach the later ones in one product (GPTQ, section 3.3, step 2), and in which
SparseGPT chooses its mask (section 3.2)."""


def factor(hinv: Tensor) -> Tensor:
    """H^-1 [d, d], float64 -> U, upper triangular. Raises torch.linalg.LinAlgError where it is not
    positive definite."""
    return torch.linalg.cholesky(hinv, upper=True)


Refit = Callable[[Tensor, Grid], Grid]
"""(weights [rows, group] of a group of columns as they are by now, the grid of all) -> theirs."""


def quantize(
    weight: Tensor, upper: Tensor, grid: Grid, fixed: Tensor, refit: Refit | None = None
) -> tuple[Tensor, Grid]:
    """GPTQ.

    Args:
        weight: [rows, d].
        upper: U, [d, d].
        grid: of each row, of all, or of groups of columns.
        fixed: bool [rows, d], weights that become zero: what they are by then, the later columns
            make up for.
        refit: gives a group its scales when its first column comes (section 3.3, "grouping"); None:
            they stay as they are.

    Returns:
        Weights, [rows, d], all on the grid, those that are fixed zero; and the grid.
    """
    kept, group = ~fixed.T, grid.group
    every = torch.arange(weight.shape[1], device=weight.device)
    again = refit if group > 1 else None
    made: list[Grid] = []

    def to(column: int, ahead: Tensor, _diagonal: Tensor) -> Tensor:
        if again is None:
            own = grid.at(every[column].expand(len(weight), 1))
        else:
            if column % group == 0:
                made.append(again((ahead[:group] * kept[column : column + group]).T, grid))
            own = made[-1]
        return own.nearest(ahead[:1].T).squeeze(1) * kept[column]

    batch = max(1, BATCH // group) * group if group else BATCH
    result = _eliminate(weight, upper, batch, lambda *_: None, to)
    return result, joined(made, 1) if made else grid


def prune(weight: Tensor, upper: Tensor, count: int) -> Tensor:
    """SparseGPT, unstructured: of every 128 columns as great a share is zero, the weights with the
    least w^2 / U_ii^2 when the first of these columns comes (section 3.2, "Mask selection").

    Args:
        weight: [rows, d].
        upper: U, [d, d].
        count: how many weights go.

    Returns:
        Weights, [rows, d].
    """
    rows, d = weight.shape
    mask = torch.zeros(d, rows, dtype=torch.bool, device=weight.device)

    def begin(start: int, ahead: Tensor, diagonal: Tensor) -> None:
        end = start + len(ahead)
        gone = count * end // d - count * start // d
        order = (ahead / diagonal[:, None]).square().T.flatten().argsort(stable=True)[:gone]
        mask[start + order % len(ahead), order // len(ahead)] = True

    return _eliminate(weight, upper, BATCH, begin, lambda i, w, _: w[0] * ~mask[i])


def prune_n_of_m(weight: Tensor, upper: Tensor, n: int, m: int) -> Tensor:
    """SparseGPT, N:M: of every m columns each row keeps the n with the greatest w^2 / U_ii^2 when
    the first of them comes (section 3.3).

    Args:
        weight: [rows, d].
        upper: U, [d, d].
        n: weights that stay in every group.
        m: consecutive columns that are a group; a divisor of d.

    Returns:
        Weights, [rows, d].
    """
    mask = torch.zeros(weight.shape[::-1], dtype=torch.bool, device=weight.device)

    def to(column: int, ahead: Tensor, diagonal: Tensor) -> Tensor:
        if column % m == 0:
            score = (ahead[:m] / diagonal[:m, None]).square()
            least = score.argsort(dim=0, stable=True)[: m - n]
            mask[column : column + m].scatter_(0, least, True)
        return ahead[0] * ~mask[column]

    return _eliminate(weight, upper, max(1, BATCH // m) * m, lambda *_: None, to)


def _eliminate(
    weight: Tensor,
    upper: Tensor,
    batch: int,
    begin: Callable[[int, Tensor, Tensor], None],
    to: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Column after column is set to what is chosen, and the later ones make up for it.

    Args:
        weight: [rows, d].
        upper: U, [d, d].
        batch: columns after which the ones beyond are moved.
        begin: called with (first column, weights [b, rows], diagonal of U [b]) of every batch.
        to: (column, weights [b, rows] from it to the end of its batch, diagonal of U there) -> what
            it is set to, [rows].

    Returns:
        Weights, [rows, d].
    """
    w = weight.T.clone(memory_format=torch.contiguous_format)  # a column is one piece of memory
    result, diagonal = torch.empty_like(w), upper.diagonal()
    for start in range(0, len(w), batch):
        end = min(len(w), start + batch)
        begin(start, w[start:end], diagonal[start:end])
        errors = torch.empty_like(w[start:end])
        for i in range(start, end):
            result[i] = to(i, w[i:end], diagonal[i:end])
            errors[i - start] = (w[i] - result[i]) / diagonal[i]
            w[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i - start], alpha=-1)
        w[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return result.T.contiguous()
