"""Layers that read the same tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.kinds.find import find_layers
from apportion.db.layers.format import LayerRecord
from apportion.evaluators.workloads.partners import partners


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 6)
        self.after, self.changed = nn.Linear(4, 4), nn.Linear(4, 4)
        self.rare = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(input=x)
        left = self.after(left)
        if (x[:, 0] > 0).all():
            right = right + self.rare(x)
        x.add_(1)  # the same tensor, and no longer what the others read
        return torch.cat([left, right, self.changed(x)], 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Block(), Block()
        self.attention = nn.MultiheadAttention(14, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x + 0
        made = self.one(x + 0)[:, None]
        beside: Tensor = self.other(y)
        return self.attention(made, made, made)[0][:, 0] + beside


def test_partners_read_one_tensor_in_one_module() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    batches = [-torch.ones(2, 4), torch.randn(8, 4), torch.ones(2, 4)]

    calibration = over(*((batch,) for batch in batches))
    records = [LayerRecord.of(layer, 1, ()) for layer in find_layers(model, calibration).layers]
    found = partners(model, records, calibration)
    assert [sorted(names) for names in found[:2]] == [
        ["one.left", "one.rare", "one.right"],
        ["other.left", "other.rare", "other.right"],
    ]
    (attention,) = found[2:]
    assert len(attention) == 3
    assert all(name.startswith("attention.in_proj") for name in attention)
