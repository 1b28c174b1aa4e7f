"""Profiles and tables that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.robustness.case import Case
from tests.robustness.whole import TABLE, both, changed, text

_CSV = "layer,level,seconds\nfc,dense,1\n"
_PROFILES: list[tuple[str, str | bytes, str]] = [
    ("json", "", "not readable as JSON"),
    ("json", "{", "not readable as JSON"),
    ("json", "[]", "expected a JSON object"),
    ("json", "null", "expected a JSON object"),
    ("json", "{}", "no level for layer"),
    ("json", '{"conv1": 3}', "expected a JSON object"),
    ("json", '{"conv1": "wat"}', "level 'wat'"),
    ("json", '{"conv1": "dense", "conv1": "2:4"}', "'conv1' stands twice"),
    ("json", "[" * 100_000, "nest"),
    ("json", '{"a":' * 1000 + "1" + "}" * 1000, "nest"),
    ("json", '{"conv1": NaN}', "NaN"),
    ("json", "9" * 5000, "JSON"),
    ("json", '{"\\ud800": "dense"}', "surrogate"),
    ("json", b"\xff\xfe{", "UTF-1"),
    ("json", b" " * 20_000_000, "more than 16 MiB"),
    ("yaml", "", "expected a map"),
    ("yaml", "[1]", "expected a map"),
    ("yaml", "conv1: dense", "no level for layer"),
    ("yaml", "conv1: dense\nconv1: dense", "line 2: the key 'conv1' stands twice"),
    ("yaml", "conv1: [dense]", "layer 'conv1'"),
    ("yaml", "conv1: true", "layer 'conv1'"),
    ("yaml", "w_bit: [4]", "w_bit: 1 values for"),
    ("yaml", "w_bit: 4", "w_bit: a map or a list"),
    ("yaml", "w_bit: {conv1: 4, nothing: 4}", "unknown layer 'nothing'"),
    ("yaml", "w_bit: {conv1: 7}", "has no level of 7-bit"),
    ("yaml", "sparsity: {conv1: many}", "sparsity of layer 'conv1'"),
    ("yaml", "sparsity:\n  conv1: 0,25", "with a point"),
    ("yaml", "w_bit: {conv1: 32}\nspasity: {conv1: 0.5}", "spasity"),
    ("yaml", "&a [*a]", "alias"),
    ("yaml", "- " * 10_000, "nest"),
    ("yaml", "a: 1\n" * 400_000, "more than 1 MiB"),
    ("csv", "", "expected the columns layer"),
    ("csv", "name,level\nconv1,dense\n", "'layer' is missing"),
    ("csv", "layer\nconv1\n", "a column 'level'"),
    ("csv", "layer,level\nconv1,dense\nconv1,dense\n", "line 3: layer 'conv1' stands twice"),
    ("csv", "layer,level\nnothing,dense\n", "no level for|unknown layer"),
    ("csv", "layer,level\nconv1,wat\n", "level 'wat'"),
    ("csv", "layer,level\nconv1\n", "line 2: 1 values for 2 columns"),
    ("csv", "layer,sparsity\nconv1,0,5\n", "written with a point"),
    ("csv", "layer,sparsity\nconv1,nan\n", "a number is needed"),
    ("csv", f"layer,level\nconv1,{'x' * 200_000}\n", "field larger"),
    ("csv", 'layer,level\nconv1,"dense\n', "line"),
    ("csv", "layer,level,level\nconv1,dense,w4\n", "'level' stands twice"),
    ("txt", "", "no level for layer"),
    ("txt", "0.5\n", "line 1: expected"),
    ("txt", "half conv1\n", "line 1"),
    ("txt", "0.0 nothing\n", "unknown layer 'nothing'"),
    ("txt", "0.0 conv1\n0.0 conv1\n", "line 2: layer 'conv1' stands twice"),
    ("toml", "", "suffix"),
]
_TABLES: list[tuple[str, str | bytes, str]] = [
    ("txt", "", "not a latency table"),
    ("txt", "hello", "not a latency table"),
    ("txt", TABLE.replace("0.8", "0.2"), "`prunable` says 0.2 s"),
    ("txt", TABLE.replace("0.8", "many"), "line 4: a number"),
    ("txt", TABLE.replace("1.0", "nan", 1), "line 2: a number"),
    ("txt", TABLE.replace("1.0", "inf", 1), "line 2: a number"),
    ("txt", TABLE.replace("0.2 0.5000", "fast 0.5"), "line 7: a number"),
    ("txt", TABLE.replace("0.2 0.5000", "0,2 0.5"), "line 7: .*with a point"),
    ("txt", TABLE.replace("0.2 0.5000", "-0.2 0.5"), "line 7: .*0 or above"),
    ("txt", TABLE.replace("0.2 0.5000", "0.2 1.0"), "line 7: a sparsity"),
    ("txt", TABLE.replace("0.2 0.5000", "0.2 -0.1"), "line 7: .*0 or above"),
    ("txt", TABLE.replace("0.2 0.5000", "0.2 0.9"), "line 8: level 'unstr-0.90'"),
    ("txt", TABLE.replace("0.2 0.5000", "0.2 0.5 1"), "line 7: expected"),
    ("txt", TABLE.replace("fc", "conv1"), "line 9: layer 'conv1' stands twice"),
    ("txt", TABLE.replace("0.3 0.0000\n", ""), "dense time|add up"),
    ("txt", "base\n0\nprunable\n0\nfc\n0 0\n", "all dense times are 0"),
    ("txt", b"\xff\xfe\x00", "UTF-1"),
    ("txt", b"\x00\x01\x02", "zero bytes"),
    ("csv", "", "expected the columns"),
    ("csv", "a,b\n1,2\n", "expected the columns"),
    ("csv", "layer,level,seconds\n", "no layers"),
    ("csv", _CSV + "fc,dense,1\n", "line 3: level 'dense' of layer 'fc' stands twice"),
    ("csv", _CSV + "fc,unstr-0.5,1\nfc,unstr-0.50,1\n", "line 4: level 'unstr-0.50'"),
    ("csv", _CSV + "*,dense,1\n*,dense,1\n", "'\\*' stands twice"),
    ("csv", _CSV + "*,w4,1\n", "line 3: of the whole model"),
    ("csv", _CSV + "*,dense,0.5\n", "exceed the whole"),
    ("csv", _CSV + "fc,wat,1\n", "line 3: level 'wat'"),
    ("csv", _CSV + "fc,w4,many\n", "line 3: a number"),
    ("csv", _CSV + "fc,w4,-1\n", "line 3: .*0 or above"),
    ("csv", _CSV + "fc,w4,1_0\n", "without _"),
    ("csv", _CSV + "fc,w4,0,5\n", "line 3: 4 values for 3 columns"),
    ("csv", _CSV.replace(",", ";") + "fc;w4;0,5\n", "line 3: .*with a point"),
    ("csv", _CSV + "fc,w4,1e999\n", "line 3: a number"),
    ("csv", _CSV + "fc,w4," + "1" * 200_000, "line 3: field larger"),
    ("csv", "layer,level,seconds\nfc,w4,1\n", "no dense time"),
    ("csv", "layer,level,seconds\nfc,dense,0\n", "all dense times are 0"),
    ("csv", "layer,level,seconds,level\nfc,dense,1,x\n", "'level' stands twice"),
    ("csv", "layer,level,seconds\nfc,dense,ü\n".encode("latin-1"), "UTF-8"),
]
_ERRORS = [
    ("layer,level,error\nconv1,unstr-0.5,1\nconv1,unstr-0.50,2", "line 3: .* stands twice"),
    ("layer;level;error\nconv1;unstr-0.5;0,5", "line 2: .*with a point"),
    ("layer,level,error\nconv1,unstr-0.5,nan", "line 2: a number"),
    ("layer,level,error\nconv1,wat,1", "line 2: level 'wat'"),
    ("layer,level\nconv1,dense", "'error' is missing"),
    ("layer,level,error\nconv1,unstr-0.5,1", "has no error of layer"),
    ("", "expected the columns"),
]


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The database's manifest changed, and its checksum made to fit."""

    def prepare(folder: Path) -> None:
        from apportion.db.layers import format

        path = folder / "database" / "manifest.json"
        content = json.loads(path.read_text())
        content.pop("fingerprint")
        change(content)
        path.write_text(json.dumps({**content, "fingerprint": format.digest(content)}))

    return prepare


def _layer(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(sorted((folder / "database" / "layers").iterdir())[1])


def _altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content)):
        content[i] ^= 0xFF
    path.write_bytes(content)


_JSON: dict[str, str | bytes] = {
    "empty": b"",
    "cut": '{"format": "apportion',
    "a list": "[]",
    "null": "null",
    "text": '"a"',
    "deep": "[" * 100_000,
    "of another": '{"format": "zip"}',
    "with a key twice": '{"format": 1, "format": 2}',
    "binary": b"\xff\xfe\x00",
}
_DATABASES: list[tuple[str, Callable[[Path], object], str]] = [
    *(
        (f"{file} {what}", text(f"database/{file}", content), file.replace(".", r"\."))
        for file in ("manifest.json", "build.json")
        for what, content in _JSON.items()
    ),
    ("manifest altered", text("database/manifest.json", "{}"), "manifest.json"),
    ("manifest without layers", _manifest(lambda m: m.pop("layers")), "manifest.json: layers"),
    ("manifest, layers null", _manifest(lambda m: m.update(layers=None)), "manifest.json: layers"),
    ("manifest, layer null", _manifest(lambda m: m.update(layers=[None])), "layers.0"),
    ("manifest, version 2", _manifest(lambda m: m.update(version=2)), "version 2"),
    (
        "manifest, unknown key in a record",
        _manifest(lambda m: m["layers"][0]["record"].update(later=1)),
        "layers.0",
    ),
    (
        "manifest, file elsewhere",
        _manifest(lambda m: m["layers"][0].update(file="../job.yaml")),
        "layers.0",
    ),
    (
        "manifest, level unknown",
        _manifest(lambda m: m["layers"][0]["record"]["entries"][0].update(level="wat")),
        "level 'wat'",
    ),
    ("manifest, other model", _manifest(lambda m: m.update(model="0" * 64)), "another model"),
    ("layer file missing", _layer(Path.unlink), "is missing"),
    ("layer file cut", _layer(lambda p: p.write_bytes(p.read_bytes()[:40])), "bytes instead of"),
    ("layer file empty", _layer(lambda p: p.write_bytes(b"")), "bytes instead of"),
    ("layer file altered", _layer(_altered), "altered"),
    (
        "layer file of zeros",
        _layer(lambda p: p.write_bytes(bytes(p.stat().st_size))),
        "0001-.*safetensors",
    ),
    (
        "other levels",
        changed("database", "levels", to=["dense", "w4"]),
        "other levels",
    ),
    (
        "folder of other files",
        both(changed("database", "path", to="letters"), text("letters/a.txt", "dear")),
        "holds other files",
    ),
    ("a file", both(changed("database", "path", to="letter"), text("letter", "dear")), "letter"),
]


def cases() -> Iterator[Case]:
    for n, (suffix, content, says) in enumerate(_PROFILES):
        file = f"given.{suffix}"
        command = ("import", f"FOLDER/{file}", "FOLDER/job.yaml", "-o", "FOLDER/out")
        name = f"profile {n}: {suffix} {content[:40]!r}"
        yield Case(name, text(file, content), command, f"given.*({says})")
    for n, (suffix, content, says) in enumerate(_TABLES):
        file = f"times.{suffix}"
        prepare = both(
            text(file, content), changed("workload", "table", to=file, name="table.yaml")
        )
        name = f"table {n}: {suffix} {content[:40]!r}"
        yield Case(name, prepare, ("search", "FOLDER/table.yaml"), f"times.*({says})")
    for content, says in _ERRORS:
        prepare = both(
            text("errors.csv", content),
            changed("workload", "error", to="errors.csv", name="table.yaml"),
        )
        name = f"errors: {content[:60]!r}"
        yield Case(name, prepare, ("search", "FOLDER/table.yaml"), f"errors.csv.*({says})")
    for name, spoil, says in _DATABASES:
        yield Case(f"database: {name}", spoil, ("search", "FOLDER/job.yaml"), says)
