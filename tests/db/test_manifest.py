"""Manifests that no build writes, with a checksum that fits: told in one line, as are measured
tables that were cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import DatabaseCorruptError, DatabaseError
from apportion.db.layers import format
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.tables import MeasuredTable
from tests.db.test_build import make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "d"
    make(path)
    return path


def layer(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: change(manifest["layers"][1])


def record(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return layer(lambda content: content["record"].update(changes))


def entry(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return layer(lambda content: content["record"]["entries"][0].update(changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("layers"), "layers: a list of layers is needed"),
        (lambda m: m.update(layers=None), "layers: a list of layers is needed"),
        (lambda m: m.update(layers=[]), "layers: a list of layers is needed"),
        (lambda m: m.update(layers={"a": 1}), "layers: a list of layers is needed"),
        (lambda m: m.update(layers=[None]), "layers.0 is no layer"),
        (lambda m: m.update(layers=[[]]), "layers.0 is no layer"),
        (lambda m: m.update(layers=2 * m["layers"]), "layers.3 is no layer"),
        (lambda m: m.pop("model"), "model: a fingerprint is needed"),
        (lambda m: m.update(calibration=3), "calibration: a fingerprint is needed"),
        (lambda m: m.update(version=2), "format version 2; this apportion reads"),
        (lambda m: m.update(version="1"), "format version 1"),
        (lambda m: m.update(format="zip"), "is not that of a layer database"),
        (layer(lambda c: c.pop("record")), "layers.1 is no layer .*KeyError: 'record'"),
        (layer(lambda c: c.pop("file")), "layers.1 is no layer .*KeyError: 'file'"),
        (layer(lambda c: c.pop("bytes")), "layers.1 is no layer .*KeyError: 'bytes'"),
        (layer(lambda c: c.update(bytes="10")), "layers.1 is no layer"),
        (layer(lambda c: c.update(file="../../secret")), "layers.1 is no layer"),
        (layer(lambda c: c.update(record=[])), "layers.1 is no layer"),
        (record(later=1), "layers.1 is no layer .*later"),
        (record(entries=None), "layers.1 is no layer"),
        (record(entries=[]), "layers.1 is no layer"),
        (record(entries=[None]), "layers.1 is no layer"),
        (record(shape=3), "layers.1 is no layer"),
        (record(name=None), "layers.1 is no layer"),
        (entry(level="wat"), "layers.1: LevelError: level 'wat'"),
        (entry(level=3), "layers.1: AttributeError"),
        (entry(later=1), "layers.1 is no layer .*later"),
        (entry(activation=[]), "layers.1 is no layer"),
    ],
)
def test_what_a_manifest_says(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "d"
    shutil.copytree(whole, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("fingerprint")
    change(manifest)
    manifest["fingerprint"] = format.digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatabaseError, match=message) as caught:
        LayerDatabase.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not that of a layer database"),
        ("null", "is not that of a layer database"),
        ("3", "is not that of a layer database"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 1000 + "]" * 1000, "cannot be read: nested"),
        ('{"format": "apportion-layer-database", "version": 1}', "was altered"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("\ud800", "is no UTF-8 text"),
    ],
)
def test_manifests_that_are_none(whole: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d"
    shutil.copytree(whole, path)
    (path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DatabaseError, match=message):
        LayerDatabase.open(path)


def test_measured_tables_that_are_cut_anywhere(whole: Path) -> None:
    database = LayerDatabase.open(whole)
    table = MeasuredTable(database, {"what": "cut"})
    table.add("0", [0.0, 0.5])
    text = table.path.read_text()
    others = ["null", "[]", '"a"', "[" * 1000, '{"checksum": 1, "rows": []}', '{"checksum": 1}']
    odd = ['{"checksum": "1", "rows": {"0": null}}', '{"checksum": "1", "rows": {"0": ["a"]}}']
    huge = '{"checksum": "1", "rows": {"0": [1' + "0" * 400 + "]}}"
    for cut in [*(text[:n] for n in range(0, len(text) - 2, 7)), *others, *odd, huge]:
        table.path.write_text(cut)
        with pytest.raises(DatabaseCorruptError, match=f"table {table.path.name}") as caught:
            MeasuredTable(database, {"what": "cut"})
        assert "\n" not in str(caught.value)
    table.path.write_text(text)
    assert MeasuredTable(database, {"what": "cut"}).rows == {"0": [0.0, 0.5]}
