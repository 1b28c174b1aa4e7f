"""Small networks, one for each way in which a weight is used.

`outputs(model, reference, batch)`: what every product with the weight puts out, each on the inputs
that the dense `reference` brings it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

R = torch.randn
Outputs = Callable[[Any, Any, Any], list[Tensor]]


class Net(nn.Module):
    """A network of named parts and a function of (self, inputs)."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(R(*shape) * 0.3)


@dataclass
class Case:
    """layer: its name. samples: in the batch, where that is not its length."""

    make: Callable[[], tuple[nn.Module, Any]]
    layer: str
    kind: str = "linear"
    outputs: Outputs | None = None
    samples: int | None = None


def whole(model: Any, _reference: Any, batch: Any) -> list[Tensor]:
    """The model's output is the product's."""
    if isinstance(batch, dict):
        return [model(**batch)]
    return [model(*batch) if isinstance(batch, tuple) else model(batch)]


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


class SamePadding(nn.Conv2d):
    """Padded in `forward` as TensorFlow pads: unevenly."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Conv1D(nn.Module):
    """A linear layer with weights [inputs, outputs], as transformers has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(inputs, outputs), nn.Parameter(R(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], -1)


def _reused(model: Any, reference: Any, x: Tensor) -> list[Tensor]:
    return [model.l(x), model.l(reference.l(x))]


def _tied(model: Any, reference: Any, x: Tensor) -> list[Tensor]:
    return [model.a(x), model.b(reference.a(x))]


def _tied_modules() -> tuple[nn.Module, Tensor]:
    net: Any = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    net.b.weight = net.a.weight
    return net, R(6, 8)


def _tied_by_data() -> tuple[nn.Module, Tensor]:
    net: Any = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    net.b.weight.data = net.a.weight.data
    return net, R(6, 8)


def _experts(s: Any, x: Tensor) -> Tensor:
    chosen = s.gate(x).argmax(-1)
    out = x.new_zeros(len(x), 6)
    for e in range(4):
        rows = (chosen == e).nonzero().flatten()
        if len(rows):
            out.index_add_(0, rows, F.linear(x[rows], s.w[e]))
    return out


def _moe() -> tuple[nn.Module, Tensor]:
    return Net(_experts, gate=nn.Linear(8, 4), w=weight(4, 6, 8)), R(40, 8)


def _gathered() -> tuple[nn.Module, Tensor]:
    def run(s: Any, x: Tensor) -> Tensor:
        return torch.bmm(s.w[s.gate(x).argmax(-1)], x.unsqueeze(-1)).squeeze(-1)

    return Net(run, gate=nn.Linear(8, 4), w=weight(4, 6, 8)), R(40, 8)


def _grouped() -> tuple[nn.Module, Tensor]:
    def run(s: Any, x: Tensor) -> Tensor:
        return torch.stack([x, 2 * x, x - 1]).transpose(0, 0).bmm(s.w)

    return Net(run, w=weight(3, 8, 6)), R(10, 8)


def _input_gates(module: nn.RNNBase, x: Tensor) -> list[Tensor]:
    return [F.linear(x, module.get_parameter("weight_ih_l0"))]


def _hidden_gates(module: Any, reference: Any, x: Tensor) -> list[Tensor]:
    states, _ = reference(x)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    return [F.linear(before, module.weight_hh_l0)]


def _attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(16, 2, **options)


def _rows(which: int, given: int) -> Outputs:
    """The projection of queries, keys or values (0, 1, 2), of what is given for it."""

    def run(model: Any, _reference: Any, batch: Any) -> list[Tensor]:
        x = batch[given] if isinstance(batch, tuple) else batch
        return [F.linear(x, model.m.in_proj_weight.chunk(3)[which])]

    return run


def _cross(s: Any, q: Tensor, k: Tensor) -> Tensor:
    return s.m(q, k, k)[0]


def _windows(s: Any, x: Tensor) -> Tensor:
    return s.l(x.unfold(1, 4, 4).unfold(2, 4, 4).flatten(0, 2).flatten(1))


_IMAGE, _SIGNAL = lambda: R(6, 4, 9, 7), lambda: R(6, 4, 11)

CASES: dict[str, Case] = {
    "conv1d": Case(
        lambda: (seq(nn.Conv1d(4, 6, 3, dilation=2, padding=1)), _SIGNAL()), "0", "conv1d"
    ),
    "conv2d": Case(lambda: (seq(nn.Conv2d(4, 6, 3, stride=2, padding=1)), _IMAGE()), "0", "conv2d"),
    "conv3d": Case(
        lambda: (seq(nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), groups=2)), R(6, 4, 4, 5, 3)),
        "0",
        "conv3d",
    ),
    "grouped": Case(lambda: (seq(nn.Conv2d(4, 6, 3, groups=2)), _IMAGE()), "0", "conv2d"),
    "depthwise": Case(lambda: (seq(nn.Conv2d(4, 8, 3, groups=4)), _IMAGE()), "0", "conv2d"),
    "same": Case(lambda: (seq(nn.Conv2d(4, 6, (2, 4), padding="same")), _IMAGE()), "0", "conv2d"),
    "reflect": Case(
        lambda: (seq(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")), _IMAGE()),
        "0",
        "conv2d",
    ),
    "circular": Case(
        lambda: (seq(nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular")), _SIGNAL()),
        "0",
        "conv1d",
    ),
    "channels last": Case(
        lambda: (
            seq(nn.Conv2d(4, 6, 3, groups=2)).to(memory_format=torch.channels_last),
            _IMAGE().contiguous(memory_format=torch.channels_last),
        ),
        "0",
        "conv2d",
    ),
    "padded in forward": Case(
        lambda: (seq(SamePadding(4, 6, 3, stride=2)), _IMAGE()), "0", "conv2d"
    ),
    "padded before": Case(
        lambda: (Net(lambda s, x: s.c(F.pad(x, (0, 1, 0, 1))), c=nn.Conv2d(4, 6, 3)), _IMAGE()),
        "c",
        "conv2d",
    ),
    "transposed 1d": Case(
        lambda: (
            seq(nn.ConvTranspose1d(4, 6, 4, 3, padding=2, output_padding=1, groups=2, dilation=2)),
            _SIGNAL(),
        ),
        "0",
        "conv_transpose1d",
    ),
    "transposed 2d": Case(
        lambda: (seq(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)), _IMAGE()),
        "0",
        "conv_transpose2d",
    ),
    "transposed 2d, output size": Case(
        lambda: (
            Net(
                lambda s, x: s.c(x, output_size=(18, 14)),
                c=nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
            ),
            _IMAGE(),
        ),
        "c",
        "conv_transpose2d",
    ),
    "linear": Case(lambda: (seq(nn.Linear(8, 6)), R(6, 8)), "0"),
    "linear, sequences": Case(lambda: (seq(nn.Linear(8, 6)), R(6, 5, 8)), "0"),
    "sequence first": Case(
        lambda: (
            Net(lambda s, x: s.l(x.transpose(0, 1)).transpose(0, 1), l=nn.Linear(8, 6)),
            R(6, 5, 8),
        ),
        "l",
    ),
    "windows in the batch": Case(lambda: (Net(_windows, l=nn.Linear(16, 6)), R(6, 8, 8)), "l"),
    "by keyword": Case(lambda: (Net(lambda s, x: s.l(input=x), l=nn.Linear(8, 6)), R(6, 8)), "l"),
    "dict": Case(
        lambda: (
            Net(lambda s, mask, ids: s.l(ids * mask), l=nn.Linear(8, 6)),
            {"ids": R(6, 8), "mask": R(6, 1)},
        ),
        "l",
        samples=6,
    ),
    "functional": Case(
        lambda: (Net(lambda s, x: F.linear(x, s.w), w=weight(6, 8)), R(6, 5, 8)), "w"
    ),
    "x @ w": Case(lambda: (Net(lambda s, x: x @ s.w, w=weight(8, 6)), R(6, 5, 8)), "w"),
    "w @ x": Case(lambda: (Net(lambda s, x: s.w @ x, w=weight(6, 8)), R(6, 8, 5)), "w"),
    "einsum": Case(
        lambda: (
            Net(lambda s, x: torch.einsum("bld,dhk->bhlk", x, s.w), w=weight(8, 2, 4)),
            R(6, 5, 8),
        ),
        "w",
    ),
    "unfolded": Case(
        lambda: (
            Net(lambda s, x: s.w.view(6, -1) @ F.unfold(x, 3), w=weight(6, 4, 3, 3)),
            _IMAGE(),
        ),
        "w",
    ),
    "transformers' Conv1D": Case(lambda: (seq(Conv1D(8, 6)), R(6, 5, 8)), "0"),
    "transposed 1d, one channel": Case(
        lambda: (seq(nn.ConvTranspose1d(1, 6, 2, 2)), R(6, 1, 5)), "0", "conv_transpose1d"
    ),
    "a convolution's weight as a matrix": Case(
        lambda: (
            Net(lambda s, x: s.c.weight.view(6, -1) @ F.unfold(x, 3), c=nn.Conv2d(4, 6, 3)),
            _IMAGE(),
        ),
        "c",
    ),
    "heads": Case(
        lambda: (Net(lambda s, x: x @ s.w, w=weight(3, 4, 6)), R(6, 3, 5, 4)),
        "w.1",
        "linear",
        lambda m, _, x: [x[:, 1] @ m.w[1]],
    ),
    "reused": Case(
        lambda: (Net(lambda s, x: s.l(s.l(x)), l=nn.Linear(8, 8)), R(6, 8)), "l", "linear", _reused
    ),
    "tied": Case(_tied_modules, "a", "linear", _tied),
    "tied by data": Case(_tied_by_data, "a", "linear", _tied),
    "slice": Case(
        lambda: (Net(lambda s, x: F.linear(x, s.w[3:6]), w=weight(9, 8)), R(6, 8)), "w.3-5"
    ),
    "every second column": Case(
        lambda: (Net(lambda s, x: F.linear(x[:, ::2], s.w[:, ::2]), w=weight(6, 8)), R(6, 8)),
        "w.all.0-6",
    ),
    "joined": Case(
        lambda: (
            Net(lambda s, x: F.linear(x, torch.cat([s.q, s.k])), q=weight(4, 8), k=weight(3, 8)),
            R(6, 8),
        ),
        "k",
        "linear",
        lambda m, _, x: [F.linear(x, m.k)],
    ),
    "attention, queries": Case(
        lambda: (Net(lambda s, x: s.m(x, x, x)[0], m=_attention(batch_first=True)), R(6, 5, 16)),
        "m.in_proj.q",
        "linear",
        _rows(0, 0),
    ),
    "attention, values, sequence first": Case(
        lambda: (Net(_cross, m=_attention()), (R(5, 6, 16), R(7, 6, 16))),
        "m.in_proj.v",
        "linear",
        _rows(2, 1),
        samples=6,
    ),
    "attention, output": Case(
        lambda: (Net(lambda s, x: s.m(x, x, x)[0], m=_attention(batch_first=True)), R(6, 5, 16)),
        "m.out_proj",
    ),
    "attention, keys of another width": Case(
        lambda: (
            Net(_cross, m=_attention(kdim=12, vdim=12, batch_first=True)),
            (R(6, 5, 16), R(6, 7, 12)),
        ),
        "m.k_proj",
        "linear",
        lambda m, _, b: [F.linear(b[1], m.m.k_proj_weight)],
        samples=6,
    ),
    "embedding": Case(
        lambda: (seq(nn.Embedding(11, 8)), torch.randint(0, 9, (6, 5))), "0", "embedding"
    ),
    "lookup": Case(
        lambda: (Net(lambda s, i: s.w[i], w=weight(11, 8)), torch.randint(0, 11, (6, 5))),
        "w",
        "embedding",
    ),
    "experts": Case(_moe, "w.2"),
    "experts, gathered": Case(_gathered, "w.2"),
    "experts, stacked": Case(_grouped, "w.1", "linear", lambda m, _, x: [(2 * x) @ m.w[1]]),
    "lstm, inputs": Case(
        lambda: (Net(lambda s, x: s.lstm(x)[0], lstm=nn.LSTM(8, 6, batch_first=True)), R(6, 5, 8)),
        "lstm.ih_l0",
        "linear",
        lambda m, _, x: _input_gates(m.lstm, x),
    ),
    "lstm, states": Case(
        lambda: (Net(lambda s, x: s.lstm(x)[0], lstm=nn.LSTM(8, 6, batch_first=True)), R(6, 5, 8)),
        "lstm.hh_l0",
        "linear",
        lambda m, r, x: _hidden_gates(m.lstm, r.lstm, x),
    ),
    "gru, states": Case(
        lambda: (Net(lambda s, x: s.gru(x)[0], gru=nn.GRU(8, 6, batch_first=True)), R(6, 5, 8)),
        "gru.hh_l0",
        "linear",
        lambda m, r, x: _hidden_gates(m.gru, r.gru, x),
    ),
}
