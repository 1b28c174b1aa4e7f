import json
import math

import pytest

from apportion.compressors.errors import DatabaseCorruptError
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.tables import MeasuredTable


def test_rows_are_kept_one_by_one(database: LayerDatabase) -> None:
    table = MeasuredTable(database, {"what": "test_rows_are_kept_one_by_one"})
    table.add("conv1", [0.0, 0.1, -0.2, math.inf, 3.0])
    table.add("linear", [0.0, 1.0, 2.0, 3.0, 4.0])
    again = MeasuredTable(database, {"what": "test_rows_are_kept_one_by_one"})
    assert again.rows == table.rows
    assert again.rows["conv1"] == [0.0, 0.1, -0.2, math.inf, 3.0]
    assert MeasuredTable(database, {"what": "something else"}).rows == {}


def test_altered_tables_are_found(database: LayerDatabase) -> None:
    table = MeasuredTable(database, {"what": "test_altered_tables_are_found"})
    table.add("conv1", [0.0, 0.1, 0.2, 0.3, 0.4])
    content = json.loads(table.path.read_text())
    content["rows"]["conv1"][1] = 0.0
    table.path.write_text(json.dumps(content))
    with pytest.raises(DatabaseCorruptError, match="was altered"):
        MeasuredTable(database, {"what": "test_altered_tables_are_found"})
    table.path.write_text("{")
    with pytest.raises(DatabaseCorruptError, match="cannot be read"):
        MeasuredTable(database, {"what": "test_altered_tables_are_found"})
    table.path.unlink()
