import json
from pathlib import Path

import pytest

from compressors.errors import ProfileError
from compressors.levels import parse_level
from db.profile import check_profile, from_json, read_profile, to_json, to_spdy

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
