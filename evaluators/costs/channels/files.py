"""Latency of layers at numbers of channels in CSV: layer, in, out, seconds.

`in` and `out` are the channels along the second and the first dimension of the layer's weight. Of
layer `*`, the row with out 0 has the seconds in no layer, that with out 1 those for each value that
layers put out for a sample; both may be left out, and be negative."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apportion.compressors.errors import DataError, DocumentError
from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.kinds.uses import Found
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.text import number, read_text
from apportion.evaluators.costs.channels.grid import Grid
from apportion.evaluators.costs.channels.latency import ChannelLatency, channels_of
from apportion.evaluators.costs.latency import WHOLE


def channels_csv(latency: ChannelLatency) -> str:
    """What `read_channels` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "in", "out", "seconds"))
    writer.writerow((WHOLE, 0, 0, repr(latency.base)))
    writer.writerow((WHOLE, 0, 1, repr(latency.slope)))
    for name, grid in latency.grids.items():
        for inputs, row in zip(grid.inputs, grid.seconds.tolist(), strict=True):
            for outputs, seconds in zip(grid.outputs, row, strict=True):
                writer.writerow((name, inputs, outputs, repr(seconds)))
    return text.getvalue()


def read_channels(path: str | Path, found: Found, groups: Sequence[ChannelGroup]) -> ChannelLatency:
    """Of a model's layers and groups. Raises DataError, which names file and line, or the layer
    that is missing, unknown, or without a whole grid."""
    path = Path(path)
    try:
        rows = _rows(read_text(path))
    except DocumentError as error:
        raise DataError(str(path), str(error)) from error
    rest = rows.pop(WHOLE, {})
    if unknown := rest.keys() - {(0, 0), (0, 1)}:
        raise DataError(str(path), f"layer '*' has in 0 and out 0 or 1, not {min(unknown)}")
    channels = channels_of(found, groups)
    names = list(channels.reads)
    if missing := [name for name in names if name not in rows]:
        raise DataError(str(path), f"has no layer {missing[0]!r}")
    if unknown_layers := [name for name in rows if name not in names]:
        raise DataError(
            str(path),
            f"the model has no layer {unknown_layers[0]!r}; it has {', '.join(names[:5])}",
        )
    grids = {name: _grid(path, name, rows[name]) for name in names}
    base, slope = rest.get((0, 0), 0.0), rest.get((0, 1), 0.0)
    return ChannelLatency(grids, channels, base, slope)


def _grid(path: Path, name: str, cells: dict[tuple[int, int], float]) -> Grid:
    inputs, outputs = (tuple(sorted({key[i] for key in cells})) for i in (0, 1))
    for i in inputs:
        for j in outputs:
            if (i, j) not in cells:
                raise DataError(str(path), f"layer {name!r} has no row with in {i} and out {j}")
    return Grid(inputs, outputs, np.array([[cells[i, j] for j in outputs] for i in inputs]))


def _rows(text: str) -> dict[str, dict[tuple[int, int], float]]:
    made: dict[str, dict[tuple[int, int], float]] = {}
    for line, row in csv_rows(text, ("layer", "in", "out", "seconds")):
        try:
            inputs, outputs, seconds = (number(row[key]) for key in ("in", "out", "seconds"))
        except DocumentError as error:
            raise DocumentError(f"line {line}: {error}") from error
        rest = row["layer"] == WHOLE
        at = int(inputs), int(outputs)
        if at != (inputs, outputs) or min(at) < (0 if rest else 1):
            raise DocumentError(
                f"line {line}: in and out are numbers of channels, 1 or more; got "
                f"{row['in']!r} and {row['out']!r}"
            )
        if seconds < 0 and not rest:
            raise DocumentError(f"line {line}: expected 0 seconds or more; got {row['seconds']!r}")
        own = made.setdefault(row["layer"], {})
        if at in own:
            raise DocumentError(
                f"line {line}: layer {row['layer']!r} with in {at[0]} and out {at[1]} stands twice"
            )
        own[at] = seconds
    return made
