"""Text of users and other tools: read as it is meant, or refused in one line."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apportion.compressors.errors import DocumentError
from apportion.db.documents import yaml_reader
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.json_reader import json_content
from apportion.db.documents.text import decoded, number, read_text
from apportion.db.documents.yaml_reader import yaml_content

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("2:4", "2:4"),
        ("1:30:00", "1:30:00"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("040", 40),
        ("040M", "040M"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000_000", "1_000_000"),
        ("0,25", "0,25"),
        ("1e5", 1e5),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("2001-12-14", "2001-12-14"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'0'", "0"),
        ('"null"', "null"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("=", "="),
        ("<<", "<<"),
        ("[2:4, 4:8, no]", ["2:4", "4:8", "no"]),
        ("{0: 2:4, 1.10: w4, no: 1, ~: 2}", {"0": "2:4", "1.10": "w4", "no": 1, "~": 2}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("# nothing", None),
        ("--- 1", 1),
    ],
)
@pytest.mark.parametrize("parser", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", None)])
def test_yaml_is_read_as_version_1_2_says(
    text: str, content: Any, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser is None:
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_reader, "_PARSER", parser)
    found = yaml_content(text)
    assert found == content
    assert type(found) is type(content)


def test_names_in_given_places_are_text() -> None:
    text = "skip: [0, 1.10, no, ~]\nlevels: [0, 1.10]\ntie: [[0, 2], [4]]"
    assert yaml_content(text, [("skip", "*"), ("tie", "*", "*")]) == {
        "skip": ["0", "1.10", "no", "~"],
        "levels": [0, 1.1],
        "tie": [["0", "2"], ["4"]],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 6: more than 200000 values"),
        ("[" * 100_000, "nested more than 50 deep|exceeded maximum nesting depth"),
        ("{a: " * 100_000, "nested more than 50 deep"),
        ("- " * 100_000, "nested more than 50 deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(100)), "line 51: nested more than 50 deep"),
        ("a: &a [*a]", "the alias \\*a is not defined before this"),
        ("&a {b: *a}", "the alias \\*a is not defined before this"),
        ("a: *b", "the alias \\*b is not defined|undefined alias"),
        ("x: &a {b: *a}\nc: *a", "line 1: the alias"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice \\(first in line 1\\)"),
        ("{a: 1, a: 1}", "line 1: the key 'a' stands twice"),
        ("0: 1\n'0': 2", "line 2: the key '0' stands twice"),
        ("a: {b: {c: 1, d: 2, c: 3}}", "the key 'c' stands twice"),
        ("<<: {a: 1}\n<<: {b: 1}", "the key '<<' stands twice"),
        ("<<: 3", "<< needs a mapping"),
        ("[a, b]: 1", "line 1: a key must be text"),
        ("? {a: 1}\n: 2", "a key must be text"),
        ("!!python/object/apply:os.getcwd []", "the tag .*os.getcwd' is not taken"),
        ("!!python/name:os.getcwd", "is not taken"),
        ("a: !mine 3", "line 1: the tag '!mine' is not taken"),
        ("a: !!binary aGk=", "is not taken"),
        ("--- 1\n--- 2", "line 2: a second document begins"),
        ("a: [1", r"not readable as YAML: line \d: "),
        ("a: b: c", "not readable as YAML: line 1"),
        ("\tb: 1", "not readable as YAML: line 1"),
        ("%YAML 9\n--- a", "not readable as YAML"),
        ("a: \x07", "not readable as YAML"),
        ("'\\", "not readable as YAML"),
        ("a: 1\n" * 300_000, "more than 1 MiB"),
        ("[" + "1, " * 210_000 + "1]", "more than 200000 values"),
    ],
)
@pytest.mark.parametrize("parser", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", None)])
def test_yaml_that_is_refused(
    text: str, message: str, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser is None:
        pytest.skip("PyYAML was built without libyaml")
    if parser is yaml.SafeLoader and len(text) > 500_000:
        pytest.skip("plain Python takes long for as much")
    monkeypatch.setattr(yaml_reader, "_PARSER", parser)
    with pytest.raises(DocumentError, match=message) as caught:
        yaml_content(text)
    assert "\n" not in str(caught.value)


TEXT = st.text("abn :#-?&*!|>'\"%@`[]{},\n\té")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(PLAIN)
def test_what_pyyaml_writes_is_read_back(content: Any) -> None:
    assert yaml_content(yaml.safe_dump(content)) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"b": {"a": 1, "c": 3, "a": 2}}', "the key 'a' stands twice"),
        ("[" * 1000 + "]" * 1000, "nested more than 50 deep"),
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ('{"a": NaN}', "NaN is no number"),
        ("[Infinity]", "Infinity is no number"),
        ("9" * 5000, "not readable as JSON"),
        ('"\\ud800"', "half a character"),
        ("{'a': 1}", "not readable as JSON"),
        ('{"a": 1', "not readable as JSON"),
        ("", "not readable as JSON"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        json_content(text)
    assert "\n" not in str(caught.value)


def test_brackets_inside_text_are_no_nesting() -> None:
    assert json_content('{"a": "' + "[" * 200 + '\\"{"}') == {"a": "[" * 200 + '"{'}


@pytest.mark.parametrize(
    "content",
    [
        "a,b\r\nc,ü\r\n".encode(),
        "a,b\rc,ü\r".encode(),
        "a,b\nc,ü\n".encode("utf-8-sig"),
        "a,b\nc,ü\n".encode("utf-16"),
        b"\xfe\xff" + "a,b\nc,ü\n".encode("utf-16-be"),
    ],
)
def test_encodings_and_line_ends_that_are_without_doubt(content: bytes) -> None:
    assert decoded(content) == "a,b\nc,ü\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ü".encode("latin-1"), r"is no UTF-8 text \(byte 0\); save it as UTF-8"),
        ("abc".encode("utf-16-le"), "has zero bytes in it"),
        (b"a\0b", "has zero bytes in it"),
        (b"\xff\xfea", "is no UTF-1"),
        (b"x" * 101, "has more than 100 bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_text(tmp_path / "f", 100)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "loop", "No such file|symbolic links"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (tmp_path / "a\0b", "No such file|null byte"),
    ):
        with pytest.raises(DocumentError, match=message):
            read_text(path)


def test_numbers() -> None:
    assert [number(text) for text in ("1", " 0.25 ", "1e-3", "-.5", 3, 0.5)] == [
        1.0,
        0.25,
        1e-3,
        -0.5,
        3.0,
        0.5,
    ]
    for text, hint in (
        ("0,25", r"\(write 0.25, with a point\)"),
        ("1_000", r"\(write 1000, without _\)"),
        ("nan", "needed"),
        ("inf", "needed"),
        ("1e999", "needed"),
        ("0x10", "needed"),
        ("", "needed"),
        ("١", "needed"),
        (None, "needed"),
        (True, "needed"),
    ):
        with pytest.raises(DocumentError, match=hint):
            number(text)


ROWS = [(2, {"a": "1", "b": "x"}), (3, {"a": "2", "b": "y z"})]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,x\n2,y z\n",
        "a, b\n1 , x\n2,  y z",
        "a;b\n1;x\n2;y z\n",
        "a\tb\n1\tx\n2\ty z\n",
        'a,b\n"1","x"\n2,"y z"\n\n',
    ],
)
def test_tables_of_all_countries(text: str) -> None:
    assert list(csv_rows(text, ["a", "b"])) == ROWS


def test_comments_come_before_a_table() -> None:
    rows = list(csv_rows("# host: x, y\n#\na,b\n1,x\n", ["b"]))
    assert rows == [(4, {"a": "1", "b": "x"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns a, b"),
        ("# only\n", "expected the columns a, b"),
        ("a,c\n1,2\n", "expected the columns a, b; 'b' is missing"),
        ("a,b,a\n1,2,3\n", "the column 'a' stands twice"),
        ("a,b\n1\n", "line 2: 1 values for 2 columns"),
        ("a,b\n1,2\n0,25,3\n", "line 3: 3 values for 2 columns; numbers are written with a point"),
        ("a;b\n1;2;3\n", "line 2: 3 values for 2 columns$"),
        (f"a,b\n1,{'x' * 200_000}\n", "line 2: field larger than"),
        ('a,b\n1,"x\n', "line [23]: unexpected end of data"),
        ('a,b\n1,"x"y\n', "line 2:"),
    ],
)
def test_tables_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        list(csv_rows(text, ["a", "b"]))
