"""One pass of a model, in which channel numbers flow from the layers that make channels to those
that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.groups import rules
from apportion.compressors.groups.labels import NONE, Book, Labels
from apportion.compressors.groups.table import rule
from apportion.compressors.kinds.origins import dense, key
from apportion.compressors.kinds.products import Product
from apportion.compressors.kinds.regions import IrregularError, locate
from apportion.compressors.kinds.watch import Watch, composite, written_to
from apportion.compressors.place import Place

_WHOLE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Modules whose sizes are not those of their parameters alone."""


@dataclass(frozen=True)
class Use:
    """One product with one place's weight: channels that its rows make [groups, rows] and that its
    columns read [groups, columns]."""

    place: Place
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Cut:
    """Channels along one dimension of a parameter or buffer, int64 [its size]; 0: none."""

    name: str
    dim: int
    channels: Tensor


@dataclass(frozen=True)
class _Output:
    """What a product gave, held so that it stays known, and whether it was written to since."""

    place: Place
    tensor: Tensor
    version: int


class Flow(Watch):
    """Follows channels through one pass; `uses` and `cuts` are those of its products with weights.
    `norms` and `biases`: place of a weight -> running mean of the batch-norm that takes its
    product, and the bias that is added to it; `activations`: multiply-accumulates of activations
    with each other."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__(model, batch)
        self.book, self.labels = Book(), Labels()
        self.uses: list[Use] = []
        self.cuts: list[Cut] = []
        self.norms: dict[Place, str] = {}
        self.biases: dict[Place, str] = {}
        self._outputs: dict[int, _Output] = {}
        self._model = model
        self._taken: Product | None = None
        self._macs = self.activations = 0
        self._owned: dict[int, tuple[str, Tensor]] = {}
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and value.dim():
                self._owned.setdefault(key(value), (name, value.detach()))
        self._numbered: dict[str, Tensor] = {}
        self._whole = {
            f"{path}.{name}".lstrip(".")
            for path, module in model.named_modules()
            if isinstance(module, _WHOLE)
            for name, _ in module.named_parameters()
        }

    def used(self, product: Product, live: bool) -> None:  # noqa: ARG002
        self._taken = product

    def multiplied(self, what: str, macs: int) -> None:
        if what == "activations":
            self._macs = macs
            self.activations += macs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator) or composite(func):
            return super().__torch_dispatch__(func, types, args, kwargs)
        self._taken, self._macs = None, 0
        before = [key(t) for t in rules.tensors((args, kwargs))]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        step = rules.Step(self.labels, self.book, func, args, kwargs or {}, out)
        step.macs = self._macs
        if self._taken is not None:
            self._made(step, self._taken)
        elif step.results:
            self._passed(step, set(before))
        return out

    def leave(self, outputs: Any) -> None:
        """What the model gives stays as it is."""
        for t in rules.output_tensors(outputs):
            self.book.lock(self.labels.of(t), "the model's outputs")

    def elementwise(self) -> dict[str, Tensor]:
        """The channels of the parameters and buffers whose elements meet activations, each of which
        got a number: name -> int64 in its shape."""
        return {name: self.labels.of(value) for name, value in self._numbered.items()}

    def _passed(self, step: rules.Step, before: set[int]) -> None:
        if all(key(t) in before for t in step.results) and not written_to(step.func):
            if step.numbered:
                rules.view(step)
            return
        if step.name == "embedding" and not self.labels.known(step.inputs[0]):
            self._laid_out(step)
            return
        if step.numbered:
            for t in step.inputs:
                self._number(t)
        elif step.name not in rules.MOVES or not any(key(t) in self._owned for t in step.inputs):
            return
        else:
            for t in step.inputs:  # a table of positions, laid out
                self._number(t)
        if step.name in rules.NORMS and len(step.inputs) > 3:
            self._normed(step.inputs[0], step.inputs[3])
        found = rule(step)
        if found is None:
            step.lock(f"{step.name} is not known to keep channels apart")
        else:
            found(step)

    def _laid_out(self, step: rules.Step) -> None:
        """A table whose rows are looked up by what is no input, as positions are."""
        table, out = step.inputs[0], step.results[0]
        name, value = self._owned.get(key(table), ("", table))
        if name and value.shape == table.shape and name not in self._whole:
            numbers = self.book.fresh(table.shape[1])
            self.labels.set(out, numbers.expand(out.shape))
            self._add_cut(name, 1, numbers)

    def _normed(self, x: Tensor, running: Tensor) -> None:
        """A batch-norm takes `x`: if that is a product's result as it was, of a weight that is used
        once, its running mean can stand for a bias."""
        made = self._outputs.get(key(x))
        if made is None or key(running) not in self._owned:
            return
        same = made.tensor.shape == x.shape and made.version == x._version
        if same and sum(use.place == made.place for use in self.uses) == 1:
            if made.place in self.norms:
                del self.norms[made.place]  # it feeds several
                self._outputs.pop(key(x))
                return
            self.norms[made.place] = self._owned[key(running)][0]

    def _number(self, tensor: Tensor) -> None:
        """Give a parameter's or buffer's elements channels of their own, when they first meet
        others'."""
        if key(tensor) not in self._owned or self.labels.known(tensor):
            return
        name, value = self._owned[key(tensor)]
        self._numbered[name] = value
        self.labels.set(value, self.book.fresh(value.numel(), True).reshape(value.shape))
        if name in self._whole:
            self.book.lock(self.labels.of(value), f"{name} is its module's, as a whole")

    def _made(self, step: rules.Step, product: Product) -> None:
        """The channels that a product with a weight reads, and those that it makes."""
        self._taken = None
        try:
            matrices = locate(self.origins, product, lambda _: ())
        except IrregularError:
            step.lock("its weight is no regular part of a parameter")
            return
        if len(matrices) != 1 or len(matrices[0].parts) != 1:
            step.lock("one product with several weights")
            return
        (matrix,) = matrices
        part = matrix.parts[0].place
        view = product.view(product.weight)[0]
        groups, rows = view.shape[:2]
        if product.table:
            made = self._table(step, product)
            self.uses.append(Use(part, made[None], torch.zeros(1, 0, dtype=torch.int64)))
            return
        columns = self._columns(product, groups)
        numbers = self.book.fresh(groups * rows).reshape(groups, rows)
        out = self._results(step, product, numbers)
        self._bias(step, product, part, out)
        self.labels.set(step.results[0], out)
        self._add_use(part, numbers, columns)
        result = step.results[0]
        self._outputs[key(result)] = _Output(part, result, result._version)
        self._cut(product, part.parameters[0], numbers, columns)

    def _add_use(self, place: Place, rows: Tensor, columns: Tensor) -> None:
        for use in self.uses:
            if use.place == place and use.columns.shape == columns.shape:
                self._same(use.rows, rows)  # used once more: the same weights
                self._same(use.columns, columns)
        self.uses.append(Use(place, rows, columns))

    def _add_cut(self, name: str, dim: int, channels: Tensor) -> None:
        for cut in self.cuts:
            if (cut.name, cut.dim) == (name, dim):
                self._same(cut.channels, channels)
        self.cuts.append(Cut(name, dim, channels))

    def _same(self, one: Tensor, other: Tensor) -> None:
        """One place in a parameter, met in two uses of it."""
        self.book.join(one, other)
        for mine, theirs in ((one, other), (other, one)):
            self.book.lock(mine[theirs == NONE], "a weight that also reads what is in no channel")

    def _columns(self, product: Product, groups: int) -> Tensor:
        found = product.columns(self.labels.of(product.input).double())[0]
        columns = found.amax(1)
        if bool(((found != columns[:, None]) & (found != NONE)).any()):
            self.book.lock(self.labels.of(product.input), "they are read in several places at once")
            columns = torch.zeros_like(columns)
        columns = columns.long().reshape(groups, -1)
        width = product.view(product.weight)[0].shape[2]
        places = columns.reshape(groups, -1, width)
        # Where a kernel's place meets padding alone, its weights still go with their channels.
        return torch.where(places == NONE, places.amax(1, keepdim=True), places).flatten(1)

    def _results(self, step: rules.Step, product: Product, numbers: Tensor) -> Tensor:
        """The row of the weight that each output came from. Where the operation does not say so:
        the product once more, with a row's number for its weights, by the product with ones."""
        out = step.results[0]
        if step.name in ("mm", "addmm", "addmm_"):
            along = numbers.reshape(1, -1)
            return (along if step.args[-1] is product.weight else along.T).expand(out.shape)

        def rows(values: Tensor) -> Tensor:
            weight = torch.zeros_like(product.weight, dtype=torch.float64)
            view = product.view(weight)[0]
            view.copy_(values.reshape(*values.shape, *[1] * (view.dim() - 2)))

            def replace(t: Tensor) -> Tensor:
                if t is product.weight:
                    return weight
                if t is product.input:
                    return torch.ones(t.shape, dtype=torch.float64)
                return torch.zeros(t.shape, dtype=torch.float64)

            return step.again(replace)[0]

        whole = rows(torch.ones_like(numbers, dtype=torch.float64))
        return (rows(numbers.double()) / whole).nan_to_num(0).round().long()

    def _bias(self, step: rules.Step, product: Product, place: Place, out: Tensor) -> None:
        for t in step.inputs:
            if t is product.weight or t is product.input or key(t) not in self._owned:
                continue
            self._number(t)
            own = self.labels.of(t)
            if "convolution" in step.name:
                own = own.reshape(-1, *[1] * (out.dim() - 2))
            self.book.join(out, own.expand(out.shape))
            name, value = self._owned[key(t)]
            if t.dim() == 1 and t.shape == value.shape:
                self.biases[place] = name

    def _table(self, step: rules.Step, product: Product) -> Tensor:
        """Rows are looked up: each column is a channel."""
        width = product.weight.shape[1]
        numbers = self.book.fresh(width)
        out = step.results[0]
        self.labels.set(out, numbers.expand(out.shape))
        name, value = self._owner(product.weight)
        if value.dim() == 2 and value.shape[1] == width:
            self._add_cut(name, 1, numbers)
        else:
            self.book.lock(numbers, f"{name} is looked up in parts")
        return numbers

    def _owner(self, weight: Tensor) -> tuple[str, Tensor]:
        origin = self.origins.of(weight)
        name = sorted(origin.names)[0]
        return name, self.origins.parameters[name]

    def _cut(self, product: Product, name: str, rows: Tensor, columns: Tensor) -> None:
        """Where the channels lie in the parameter `name`: along which of its dimensions."""
        value = self.origins.parameters[name]
        elements = self.origins.numbers(product.weight)() - self.origins.starts[name]
        whole = product.view(elements)[0]
        where = whole.reshape(*whole.shape[:3], -1)  # [groups, rows, channels, kernel]
        groups, each, width, kernel = where.shape
        channels = columns.reshape(groups, kernel, width).amax(1)
        reached = columns.reshape(groups, kernel, width)
        mixed = bool(((reached != channels[:, None]) & (reached != NONE)).any())
        if mixed or name in self._whole or not dense(value):
            self.book.lock(rows, f"{name} is used as a whole")
            self.book.lock(columns, f"{name} is used as a whole")
            return
        if groups > 1 and width == 1:  # depthwise: a channel is a group of the convolution
            own = channels.expand(groups, each)
            self.book.lock(rows[own == NONE], "a depthwise convolution of what is in no channel")
            self.book.join(own, rows)
            rows = own
        elif groups > 1:  # as many of each group
            self.book.join(rows[:1].expand_as(rows), rows)
            self.book.join(channels[:1].expand_as(channels), channels)
        g, r, c = (torch.arange(n) for n in (groups, each, width))
        row = (g[:, None] * each + r)[:, :, None].expand(groups, each, width)
        column = (g[:, None] * width + c)[:, None, :].expand(groups, each, width)
        # A regular part of a parameter: its ends tell how it lies.
        for numbers, unit, ends in (
            (rows, row[:, :, [0, -1]], where[:, :, [0, -1], 0]),
            (channels, column[:, [0, -1]], where[:, [0, -1], :, 0]),
        ):
            depthwise = groups > 1 and width == 1 and numbers is channels
            if depthwise or not bool((numbers > 0).any()):
                continue
            places = _coordinates(ends, value)
            own = numbers.flatten()[unit]
            shared = numbers[:1].expand_as(numbers).flatten()[unit]
            found = _along(places, own, unit) or _along(places, shared, unit)
            if found is None:
                self.book.lock(numbers, f"{name} has no dimension for them")
            else:
                dim, along = found
                self._add_cut(name, dim, along)


def _coordinates(offsets: Tensor, value: Tensor) -> Tensor:
    """Of elements at these places in the storage of a dense tensor: [dims, ...]."""
    made = [torch.zeros_like(offsets)] * value.dim()
    strides = value.stride()
    largest_first = sorted(range(value.dim()), key=strides.__getitem__, reverse=True)
    for dim in (d for d in largest_first if value.shape[d] > 1):
        made[dim] = offsets // strides[dim]
        offsets = offsets % strides[dim]
    return torch.stack(made)


def _along(places: Tensor, numbers: Tensor, unit: Tensor) -> tuple[int, Tensor] | None:
    """The dimension in which every unit (a row, or a column) has one index, and every index one
    number; and those numbers, by index."""
    flat, unit = numbers.flatten(), unit.flatten()
    for dim, place in enumerate(places):
        index = place.flatten()
        own = torch.zeros(int(unit.max()) + 1, dtype=torch.int64).scatter_(0, unit, index)
        made = torch.zeros(int(index.max()) + 1, dtype=torch.int64).scatter_(0, index, flat)
        if bool((own[unit] == index).all()) and bool((made[index] == flat).all()):
            return dim, made
    return None
