import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.compressors import formats
from apportion.compressors.errors import LevelError
from apportion.compressors.levels import (
    DENSE,
    Level,
    Quantization,
    Sparsity,
    expand_levels,
    parse_level,
)

fractions = st.integers(1, 999_999).map(lambda n: n / 1_000_000)
sparsities = st.one_of(
    st.builds(lambda f, m: Sparsity("unstr", f, magnitude=m), fractions, st.booleans()),
    st.builds(
        lambda f, b, m: Sparsity("block", f, block=b, magnitude=m),
        fractions,
        st.integers(1, 64),
        st.booleans(),
    ),
    st.builds(
        lambda nm, mag: Sparsity(
            "nm", round(1 - nm[0] / nm[1], 6), n=nm[0], m=nm[1], magnitude=mag
        ),
        st.tuples(st.integers(1, 32), st.integers(1, 32)).map(lambda t: (min(t), max(t))),
        st.booleans(),
    ),
    st.builds(lambda f, m: Sparsity("filter", f, magnitude=m), fractions, st.booleans()),
)
activations = st.none() | st.integers(2, 16)
quantizations = st.one_of(
    st.builds(Quantization, st.integers(1, 8), activations, st.booleans()),
    st.builds(Quantization, st.none(), st.integers(2, 16)),
    st.builds(
        lambda bits, group, a, how: Quantization(
            bits, a, how == "rtn", how.startswith("gptq"), f"w{bits}g{group}", how == "gptq-desc"
        ),
        st.integers(1, 8),
        st.integers(1, 4096),
        activations,
        st.sampled_from(["", "rtn", "gptq", "gptq-desc"]),
    ),
    st.builds(
        lambda name, nearest: Quantization(formats.find(name).bits, None, nearest, format=name),  # type: ignore[union-attr]
        st.sampled_from(formats.names()),
        st.booleans(),
    ),
)


@given(st.none() | sparsities, st.none() | quantizations)
def test_every_level_prints_and_parses_to_itself(
    sparsity: Sparsity | None, quantization: Quantization | None
) -> None:
    level = Level(sparsity, quantization)
    assert parse_level(str(level)) == level


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "unstr-0.50",
        "unstr-0.468559",
        "mag:unstr-0.90",
        "block4-0.50",
        "mag:block4-0.75",
        "2:4",
        "4:8",
        "mag:2:4",
        "4:4",
        "filter-0.30",
        "w4",
        "w8",
        "w1",
        "w4a8",
        "a8",
        "w8a8-token",
        "a4-token",
        "2:4+gptq:w4g64a8-token",
        "rtn:w4",
        "rtn:w4a4",
        "w4g128",
        "w4g128a8",
        "gptq:w4",
        "gptq-desc:w3g64",
        "rtn:mxfp4",
        "2:4+nvfp4",
        "sparsegpt:2:4+gptq:w4g64",
        "sparsegpt:unstr-0.70",
        "2:4+w4a4",
        "unstr-0.75+w8",
        "block4-0.50+w4",
        "mag:2:4+rtn:w4",
        "filter-0.30+w8a8",
        "channels-0.50",
        "channels-0.50+w8a8",
        "channels-0.25+2:4+w4",
        "heads-0.25",
        "heads-0.50+w8a8",
        "drop",
    ],
)
def test_canonical_text_is_printed_as_it_was_read(text: str) -> None:
    assert str(parse_level(text)) == text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("unstr-.5", "unstr-0.50"),
        ("unstr-0.5", "unstr-0.50"),
        (" 2:4 ", "2:4"),
        ("unstr-0.123", "unstr-0.123"),
    ],
)
def test_other_spellings_of_the_same_level(text: str, printed: str) -> None:
    assert str(parse_level(text)) == printed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unstr-1.0", "expected dense"),
        ("unstr-0.0", "between 0 and 1"),
        ("unstr-0.0000001", "between 0 and 1"),
        ("5:4", "0 < N <= M"),
        ("0:4", "0 < N <= M"),
        ("w9", "1 to 8"),
        ("w0", "1 to 8"),
        ("w4a1", "2 to 16"),
        ("rtn:a8", "no weight bits"),
        ("w8-token", "after activation bits, 2 to 8"),
        ("w8a16-token", "after activation bits, 2 to 8"),
        ("fp8-token", "expected dense"),
        ("block0-0.5", "at least one weight"),
        ("w4+2:4", "a sparse part comes first"),
        ("2:4+4:8", "a sparse part comes first"),
        ("w4+w8", "only one quantized part"),
        ("2:4+w4+w8", "only one quantized"),
        ("dense+w4", "expected dense"),
        ("2:4+channels-0.5", "channels come first"),
        ("channels-0.5+channels-0.5", "channels come first"),
        ("channels-0.0", "between 0 and 1"),
        ("heads-0.5+channels-0.5", "channels come first"),
        ("drop+w8", "expected dense, drop"),
        ("mag:channels-0.5", "expected dense"),
        ("sparse-0.5", "expected dense"),
        ("", "expected dense"),
    ],
)
def test_bad_text_says_why(text: str, reason: str) -> None:
    with pytest.raises(LevelError, match=reason) as caught:
        parse_level(text)
    assert caught.value.text == text


def test_the_ladder_keeps_nine_tenths_at_every_step() -> None:
    ladder = expand_levels(["dense", "unstr-0.10..0.99"])
    assert len(ladder) == 45
    assert ladder[0] == DENSE
    assert [str(level) for level in ladder[1:4]] == ["unstr-0.10", "unstr-0.19", "unstr-0.271"]
    assert str(ladder[-1]) == "unstr-0.99"
    left = [1 - level.fraction_removed for level in ladder[:-1]]
    assert all(
        after / before == pytest.approx(0.9, abs=2e-4) for before, after in itertools.pairwise(left)
    )


def test_the_step_can_be_set_and_ladders_can_be_joint() -> None:
    assert [str(level) for level in expand_levels(["unstr-0.5..0.875*0.5"])] == [
        "unstr-0.50",
        "unstr-0.75",
        "unstr-0.875",
    ]
    assert [str(level) for level in expand_levels(["block4-0.5..0.75*0.5+w8"])] == [
        "block4-0.50+w8",
        "block4-0.75+w8",
    ]


def test_repetitions_are_dropped() -> None:
    assert [str(level) for level in expand_levels(["dense", "w4", "dense", "w4"])] == [
        "dense",
        "w4",
    ]


@pytest.mark.parametrize(
    "text",
    ["unstr-0.9..0.1", "unstr-0.1..1.0", "w2..w8", "unstr-0.1..0.5*1.0", "unstr-0.1..0.99*0.9999"],
)
def test_bad_ladders(text: str) -> None:
    with pytest.raises(LevelError):
        expand_levels([text])


def test_channels_and_weights_go_together() -> None:
    assert parse_level("channels-0.50+2:4").fraction_removed == 0.75
    assert parse_level("channels-0.30").fraction_removed == pytest.approx(0.3)
    assert not parse_level("channels-0.30").is_dense
