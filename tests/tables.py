"""Tables in the formats that data come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXTS = ("text", "label", "third")


def write(
    folder: Path,
    kind: str,
    rows: Sequence[tuple[Any, ...]],
    name: str = "file",
    names: Sequence[str] = TEXTS,
) -> str:
    """The file `name` of this kind with the rows, and with the first of `names` for its columns."""
    path, names = folder / f"{name}.{kind}", names[: len(rows[0])]
    if kind == "csv":
        path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    elif kind == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
    else:
        import pyarrow
        import pyarrow.parquet

        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)
