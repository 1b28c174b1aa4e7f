"""Divergences and losses of logits: against torch's own, and with a large vocabulary."""

import pytest
import torch
from torch.nn import functional as F

from apportion.evaluators.tasks.text import softmax


def logits(rows: int, classes: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_a_small_vocabulary_is_exact() -> None:
    dense, found = logits(20, 7, 0).reshape(4, 5, 7), logits(20, 7, 1).reshape(4, 5, 7)
    where = torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    value = softmax.kl(found, where, softmax.kept(dense, where))
    expected = F.kl_div(
        found[where].double().log_softmax(1),
        dense[where].double().log_softmax(1),
        reduction="none",
        log_target=True,
    ).sum(1)
    torch.testing.assert_close(value, expected)
    wanted = torch.arange(int(where.sum())) % 7
    cross = F.cross_entropy(found[where].double(), wanted, reduction="none")
    torch.testing.assert_close(softmax.nll(found, where, wanted), cross)


def test_of_a_large_vocabulary_the_rest_is_one_outcome() -> None:
    """What is left out can only make the divergence smaller, and hardly does where the dense model
    is sure."""
    dense = logits(6, 5000, 0)
    found = dense + logits(6, 5000, 1) / 6
    where = softmax.every(dense)
    kept = softmax.kept(dense, where)
    assert kept["values"].shape == (6, softmax.TOP)
    value = softmax.kl(found, where, kept)
    whole = (
        dense.double().softmax(1) * (dense.double().log_softmax(1) - found.double().log_softmax(1))
    ).sum(1)
    assert bool((value <= whole).all())
    torch.testing.assert_close(value, whole, rtol=0.15, atol=0)
    top = dense.double().softmax(1).topk(softmax.TOP).values.sum(1)
    assert bool((top < 0.99).all())  # there is a rest
    moved = found.clone()
    moved[0, dense[0].topk(softmax.TOP).indices] -= 2  # mass goes to the rest
    assert float(softmax.kl(moved, where, kept)[0]) > float(value[0]) + 0.05


@pytest.mark.parametrize("classes", [5, 3000])
def test_nothing_diverges_from_itself(classes: int) -> None:
    dense = 20 * logits(3, classes, 0)  # so sure that nothing is left for the rest
    dense[0, 0] = -torch.inf
    where = softmax.every(dense)
    assert float(softmax.kl(dense, where, softmax.kept(dense, where)).abs().max()) == 0


def test_parts_of_the_rows_give_what_all_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, found = logits(30, 600, 0), logits(30, 600, 1)
    where = torch.arange(30) % 3 > 0
    wanted = torch.arange(20)

    def values() -> tuple[torch.Tensor, torch.Tensor]:
        kept = softmax.kept(dense, where)
        return softmax.kl(found, where, kept), softmax.nll(found, where, wanted)

    whole = values()
    monkeypatch.setattr(softmax, "_AT_ONCE", 1300)
    for one, other in zip(whole, values(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_go_through() -> None:
    dense, found = logits(4, 900, 0), logits(4, 900, 1).requires_grad_()
    where = softmax.every(dense)
    softmax.kl(found, where, softmax.kept(dense, where)).mean().backward()
    assert found.grad is not None
    assert bool(torch.isfinite(found.grad).all())
    expected = (found.detach().softmax(1) - dense.softmax(1)) / 4
    top = dense.topk(softmax.TOP).indices
    torch.testing.assert_close(
        found.grad.gather(1, top), expected.gather(1, top), rtol=0.05, atol=1e-4
    )


def test_means_are_those_of_each_sample() -> None:
    where = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    values = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    assert softmax.by_sample(values, where).tolist() == [2.0, 0.0, 5.0]
