import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.compressors.errors import ProfileError
from apportion.compressors.levels import parse_level
from apportion.db.layers.profile import Profile, check_profile, from_json, to_json, to_spdy
from apportion.db.layers.profile_files import read_profile, to_csv, to_yaml

LEVELS = {"a": ["dense", "unstr-0.50", "unstr-0.468559"], "b": ["dense", "w4", "2:4"]}
PROFILE = {"a": parse_level("unstr-0.468559"), "b": parse_level("dense")}


def test_json_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(to_json(PROFILE)))
    assert read_profile(file, LEVELS) == PROFILE
    assert from_json({"profile": to_json(PROFILE), "costs": {}}, "x") == PROFILE


def test_spdy_text_round_trip(tmp_path: Path) -> None:
    text = to_spdy(PROFILE)
    assert text == "0.4686 a\n0.0000 b\n"
    file = tmp_path / "profile.txt"
    file.write_text(text)
    assert read_profile(file, LEVELS) == PROFILE


def test_spdy_text_holds_no_quantization() -> None:
    with pytest.raises(ProfileError, match="layer 'b' is at w4"):
        to_spdy({**PROFILE, "b": parse_level("w4")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5 a\n0.0000 c\n", "line 2: unknown layer 'c'"),
        ("0.5\n", "line 1: expected 'SPARSITY LAYER'"),
        ("0.7 a\n", "line 1: layer 'a' has no level of sparsity 0.7"),
        ("half a\n", "line 1: layer 'a' has no level of sparsity half"),
        ("0.5 a\n", "no level for layer 'b'"),
    ],
)
def test_bad_spdy_text_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "profile.txt"
    file.write_text(text)
    with pytest.raises(ProfileError, match=message):
        read_profile(file, LEVELS)


def test_profiles_are_checked_against_the_levels() -> None:
    check_profile(PROFILE, LEVELS)
    with pytest.raises(ProfileError, match="layer 'b' has no level 'unstr-0.50'"):
        check_profile({**PROFILE, "b": parse_level("unstr-0.5")}, LEVELS)
    with pytest.raises(ProfileError, match="unknown layer 'z'"):
        check_profile({**PROFILE, "z": parse_level("dense")}, LEVELS)
    with pytest.raises(ProfileError, match="expected a JSON object"):
        from_json([1], "x")


@pytest.mark.parametrize(("write", "suffix"), [(to_csv, "csv"), (to_yaml, "yaml")])
def test_tables_round_trip(tmp_path: Path, write: Callable[[Profile], str], suffix: str) -> None:
    file = tmp_path / f"profile.{suffix}"
    for profile in (
        PROFILE,
        {"a": parse_level("dense"), "b": parse_level("2:4")},
        {**PROFILE, "b": parse_level("w4")},
    ):
        file.write_text(write(profile))
        assert read_profile(file, LEVELS) == profile


MANY = {
    "a": ["dense", "mag:unstr-0.50", "2:4", "unstr-0.50", "w4", "2:4+w4a8"],
    "b": ["dense", "w4", "w8a8", "filter-0.50"],
}


@pytest.mark.parametrize(
    ("suffix", "text", "found"),
    [
        ("yaml", "{a: 0.5, b: 0}", ("unstr-0.50", "dense")),
        ("yaml", "{a: unstr-0.50, b: w4}", ("unstr-0.50", "w4")),
        ("yaml", "pruning_rate: [0.5, 0.5]", ("unstr-0.50", "filter-0.50")),
        ("yaml", "sparsity: {b: 0.0, a: 0.5}", ("unstr-0.50", "dense")),
        ("yaml", "w_bit: [4, 8]\na_bit: [32, 8]", ("w4", "w8a8")),
        ("yaml", "w_bit: [4, 4]\na_bit: [8, 32]\npruning_rate: [0.5, 0]", ("2:4+w4a8", "w4")),
        ("csv", "layer,w_bit\na,4\nb,32\n", ("w4", "dense")),
        ("csv", "layer,sparsity,a_bit\nb,,8\na,0.5,\n", None),
    ],
)
def test_what_other_tools_write_is_matched_with_the_levels_at_hand(
    tmp_path: Path, suffix: str, text: str, found: tuple[str, str] | None
) -> None:
    file = tmp_path / f"profile.{suffix}"
    file.write_text(text)
    if found is None:
        with pytest.raises(
            ProfileError,
            match="layer 'b' has no level of 32-bit weights, 8-bit inputs and sparsity 0",
        ):
            read_profile(file, MANY)
    else:
        assert tuple(map(str, read_profile(file, MANY).values())) == found


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("yaml", "[1, 2]", "expected"),
        ("yaml", "w_bit: [4]", "w_bit: 1 values for 2 layers"),
        ("yaml", "w_bit: [32, many]", "w_bit of layer 'b': a number is needed, not 'many'"),
        ("yaml", "a: 0.5", "no level for layer 'b'"),
        ("yaml", "a: {b: c}", "layer 'a': a level or a sparsity is needed"),
        ("yaml", "a: [", "not readable as YAML: line"),
        ("csv", "name,level\na,w4\n", "expected the columns layer; 'layer' is missing"),
        ("csv", "layer,color\na,red\n", "a column"),
        ("csv", "layer,level\na,dense\nb,w4\nz,w4\n", "unknown layer 'z'"),
        ("csv", "layer,level\na,dense\na,dense\n", "layer 'a' stands twice"),
        ("csv", "layer;level\na;dense\nb;w5\n", "layer 'b' has no level 'w5'"),
        ("csv", "layer,sparsity\na,0,5\n", "line 2: 3 values for 2 columns; numbers are written"),
        ("csv", "layer;sparsity\na;0,5\n", r"sparsity of layer 'a': .*\(write 0.5, with a point"),
        ("json", '{"a": "dense", "a": "unstr-0.50", "b": "w4"}', "the key 'a' stands twice"),
        ("json", "[" * 1000, "nested"),
        ("yaml", "a: dense\nb: w4\na: unstr-0.50", "line 3: the key 'a' stands twice"),
        ("yaml", "levels: {a: dense, b: w4, a: unstr-0.50}", "the key 'a' stands twice"),
        ("yaml", "a: true\nb: w4", "layer 'a': a level or a sparsity is needed, not True"),
        ("yaml", "w_bit: {a: 32, b: 4, c: 8}", "w_bit: unknown layer 'c'"),
        ("yaml", "w_bit: {b: 4}", "no level for layer 'a'"),
        ("yaml", "w_bit: [true, 4]", "w_bit of layer 'a': a number is needed"),
        ("yaml", "w_bit: [.nan, 4]", "w_bit of layer 'a': a number is needed"),
        ("yaml", "w_bit: [32, 4]\nspasity: [0.5, 0]", "spasity: unknown; known are sparsity"),
        ("yaml", "sparsity: [0.5, 0]\npruning_rate: [0, 0]", "sparsity and pruning_rate differ"),
        ("txt", "0.5 a\n0.0 b\n0.0 a\n", "line 3: layer 'a' stands twice"),
        ("toml", "", "suffix"),
    ],
)
def test_tables_that_cannot_be_read_name_what_is_wrong(
    tmp_path: Path, suffix: str, text: str, message: str
) -> None:
    file = tmp_path / f"profile.{suffix}"
    file.write_text(text)
    with pytest.raises(ProfileError, match=message):
        read_profile(file, LEVELS)


def test_layers_that_are_called_by_numbers(tmp_path: Path) -> None:
    levels = {"0": ["dense", "unstr-0.50"], "2": ["dense", "2:4"], "1.10": ["dense", "w4"]}
    wanted = {"0": "unstr-0.50", "2": "2:4", "1.10": "w4"}
    for name, text in (
        ("a.yaml", "{0: unstr-0.50, 2: 2:4, 1.10: w4}"),
        ("b.YAML", "0: 0.5\n2: 2:4\n1.10: w4"),
        ("c.yaml", "levels: {0: unstr-0.50, 2: 2:4, 1.10: w4}"),
        ("d.CSV", "\ufefflayer;level\r\n0;unstr-0.50\r\n2;2:4\r\n1.10;w4\r\n"),
        ("e.json", json.dumps(wanted)),
    ):
        (tmp_path / name).write_text(text, newline="")
        assert to_json(read_profile(tmp_path / name, levels)) == wanted
