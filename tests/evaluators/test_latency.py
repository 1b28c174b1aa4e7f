import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.compressors.errors import ConfigurationError, DataError
from apportion.compressors.levels import DENSE, Level, Sparsity, parse_level
from apportion.evaluators.costs.latency import LatencyTable, ask_latency
from apportion.evaluators.costs.latency_files import read_latency

TEXT = """base
1.0
prunable
0.8
conv1
0.3 0.0000
0.2 0.5000
0.25 0.9000
fc
0.5 0.0000
0.1 0.9000
"""


def write(folder: Path, text: str, name: str = "table.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_spdy_text_has_the_whole_and_what_is_left_of_it(tmp_path: Path) -> None:
    table = read_latency(write(tmp_path, TEXT))
    assert (table.whole, table.base) == (1.0, pytest.approx(0.2))
    levels = [
        parse_level(text)
        for text in ("dense", "unstr-0.50", "unstr-0.70", "unstr-0.95", "w4", "unstr-0.50+w4")
    ]
    assert table.of("conv1", levels).tolist() == pytest.approx([0.3, 0.2, 0.225, 0.25, 0.3, 0.3])
    assert [str(level) for level in table.unknown("conv1", levels)] == ["w4", "unstr-0.50+w4"]


def test_csv_takes_any_level(tmp_path: Path) -> None:
    text = "layer,level,seconds\n*,dense,2.0\nfc,dense,1.0\nfc,2:4,0.6\nfc,w8a8,0.3\n"
    table = read_latency(write(tmp_path, text, "t.csv"))
    assert table.base == 1.0
    assert table.of("fc", [parse_level(t) for t in ("2:4", "w8a8", "w4")]).tolist() == [
        0.6,
        0.3,
        1.0,
    ]


def test_noise_is_smoothed_and_counted(tmp_path: Path) -> None:
    table = read_latency(write(tmp_path, TEXT))
    clean = table.cleaned()
    assert clean.moved == 2
    assert clean.of(
        "conv1", [DENSE, parse_level("unstr-0.50"), parse_level("unstr-0.90")]
    ).tolist() == pytest.approx([0.3, 0.225, 0.225])
    assert table.seconds["conv1"][parse_level("unstr-0.90")] == 0.25  # the raw values stay
    assert clean.cleaned().moved == 0


@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=12))
def test_clean_times_never_rise_and_keep_their_sum(times: list[float]) -> None:
    shares = np.linspace(0, 0.99, len(times)).round(4).tolist()
    row = {
        Level(Sparsity("unstr", s)) if s else DENSE: t for s, t in zip(shares, times, strict=True)
    }
    clean = LatencyTable({"a": row}, sum(times), "x").cleaned().seconds["a"]
    smooth = list(clean.values())
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(smooth))
    assert sum(smooth) == pytest.approx(sum(times))


def test_filter_levels_have_a_ladder_of_their_own(tmp_path: Path) -> None:
    rows = (
        "layer,level,seconds\n"
        "fc,dense,1\nfc,filter-0.2,1.25\nfc,filter-0.4,0.5\nfc,filter-0.8,0.6\n"
    )
    table = read_latency(write(tmp_path, rows, "t.csv"))
    levels = [
        parse_level(text)
        for text in ("filter-0.1", "filter-0.6", "filter-0.9", "filter-0.4+w8", "unstr-0.5")
    ]
    assert table.of("fc", levels).tolist() == pytest.approx([1.125, 0.55, 0.6, 1, 1])
    assert [str(level) for level in table.unknown("fc", levels)] == ["filter-0.40+w8"]
    clean = table.cleaned()
    assert clean.moved == 2
    assert list(clean.seconds["fc"].values()) == pytest.approx(
        [1, 1.25, 0.55, 0.55]
    )  # one that is slower than dense stays so
    without = read_latency(write(tmp_path, "layer,level,seconds\nfc,dense,1\nfc,w4,1\n", "w.csv"))
    assert without.unknown("fc", levels) == [*levels[:4]]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("hello", "t.txt", "not a latency table"),
        (
            TEXT.replace("0.8", "0.5"),
            "t.txt",
            "`prunable` says 0.5 s, the layers' dense times add up to 0.8 s",
        ),
        (TEXT.replace("0.2 0.5000", "fast 0.5"), "t.txt", "line 7: a number is needed, not 'fast'"),
        (TEXT.replace("0.9000", "1.0"), "t.txt", "a sparsity lies in"),
        (TEXT.replace("0.5 0.0000\n", ""), "t.txt", "add up to|no dense time"),
        ("a,b\n1,2\n", "t.csv", "expected the columns layer, level, seconds"),
        ("layer,level,seconds\nfc,wat,1\n", "t.csv", "line 2.*wat"),
        ("layer,level,seconds\nfc,2:4,1\n", "t.csv", "layer 'fc' has no dense time"),
        ("layer,level,seconds\n", "t.csv", "no layers"),
        (
            TEXT.replace("0.25 0.9000", "0.25 0.5000"),
            "t.txt",
            "line 8: level 'unstr-0.50' of layer",
        ),
        (
            TEXT.replace("0.2 0.5000", "0.3 0.0"),
            "t.txt",
            "line 7: level 'dense' of layer 'conv1' st",
        ),
        (TEXT.replace("fc", "conv1"), "t.txt", "line 9: layer 'conv1' stands twice"),
        (TEXT.replace("0.9000", "0.9999999"), "t.txt", "a sparsity lies in"),
        (TEXT.replace("0.2 0.5000", "0,2 0.5"), "t.txt", r"line 7: .*\(write 0.2, with a point\)"),
        (TEXT.replace("0.2 0.5000", "0.2 0.5 1"), "t.txt", "line 7: expected a layer's name, or"),
        (TEXT.replace("1.0", "nan", 1), "t.txt", "line 2: a number is needed, not 'nan'"),
        (
            "layer,level,seconds\nfc,dense,1\nfc,2:4,0.5\nfc,2:4,0.4\n",
            "t.csv",
            "line 4: level '2:4' of layer 'fc' stands twice",
        ),
        (
            "layer,level,seconds\nfc,dense,1\nfc,unstr-0.5,0.5\nfc,unstr-0.50,0.5\n",
            "t.csv",
            "line 4: level 'unstr-0.50' of layer 'fc' stands twice",
        ),
        (
            "layer,level,seconds\n*,dense,1\n*,dense,1\nfc,dense,1",
            "t.csv",
            "layer '\\*' stands twice",
        ),
        ("layer,level,seconds\n*,w4,1\nfc,dense,1\n", "t.csv", "line 2: of the whole model only"),
        ("layer,level,seconds\nfc,dense,0\n", "t.csv", "all dense times are 0"),
        ("layer,level,seconds\n*,dense,0\nfc,dense,0\n", "t.csv", "all dense times are 0"),
        ("layer;level;seconds\nfc;dense;0,5\n", "t.csv", r"line 2: .*\(write 0.5, with a point\)"),
        ("layer,level,seconds\nfc,dense,0,5\n", "t.csv", "line 2: 4 values for 3 columns"),
        ("layer,level,seconds\nfc,dense,1e999\n", "t.csv", "line 2: a number is needed"),
        ("layer,level,seconds\nfc,dense,1_0\n", "t.csv", r"\(write 10, without _\)"),
        ("layer,level,seconds\nfc,dense," + "1" * 200_000, "t.csv", "line 2: field larger than"),
        ("layer,level,seconds\n*,dense,1\nfc,dense,2\n", "t.csv", "exceed the whole model's"),
    ],
)
def test_bad_tables_name_file_and_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_latency(write(tmp_path, text, name))


CSV = "layer,level,seconds\n*,dense,2.0\nfc,dense,1.0\nfc,2:4,0.6\n"


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        CSV.replace(",", ";").encode(),
        CSV.replace(",", "\t").encode(),
        CSV.replace(",", ", ").encode(),
        CSV.replace("\n", "\r\n").encode(),
        CSV.replace("\n", "\r").encode(),
        b"# made on host; by hand\n" + CSV.encode(),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.CSV"])
def test_what_spreadsheets_save_is_read(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    table = read_latency(tmp_path / name)
    assert table.whole == 2.0
    assert table.seconds == {"fc": {DENSE: 1.0, parse_level("2:4"): 0.6}}


def test_a_published_sum_that_is_a_little_off_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = read_latency(write(tmp_path, TEXT))
    assert not caplog.text
    table = read_latency(write(tmp_path, TEXT.replace("0.8", "0.792")))
    assert "`prunable` says 0.792 s" in caplog.text
    assert "the layers' own times are used, 0.8 s together" in caplog.text
    assert table.seconds == exact.seconds
    assert table.base == pytest.approx(0.208)  # what the file says that is not prunable
    assert table.whole == pytest.approx(1.008)


def test_missing_files_and_layers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_latency(tmp_path / "none.txt")
    with pytest.raises(DataError, match="has no layer 'conv2'; it has conv1, fc"):
        read_latency(write(tmp_path, TEXT)).of("conv2", [DENSE])


def test_the_published_tables(shared_data: Path) -> None:
    table = read_latency(shared_data / "timings" / "rn50_unstr.txt")
    assert len(table.seconds) == 54
    assert {len(row) for row in table.seconds.values()} == {42}
    assert table.cleaned().moved > 0


def seconds_of(layer: str, level: str) -> float:
    return 10.0 if layer == "*" else {"dense": 2.0, "2:4": 1.5}.get(level, -1.0)


def raising(layer: str, level: str) -> float:
    raise RuntimeError(f"{layer} {level}\nbroken")


not_callable = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:getcwd", r"latency.table: os:getcwd\('a', 'dense'\) raised TypeError"),
        (f"{__name__}:raising", r"raised RuntimeError: a dense$"),
        (f"{__name__}:not_callable", "is no function"),
        (f"{__name__}:nothing", "module .* has no 'nothing'"),
        ("no_such_module:f", "cannot be imported .ModuleNotFoundError"),
    ],
)
def test_functions_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ask_latency(name, {"a": [DENSE]})


def zero(layer: str, level: str) -> float:  # noqa: ARG001
    return 0.0


def text(layer: str, level: str) -> str:  # noqa: ARG001
    return "1.0"


def test_functions_that_give_no_times() -> None:
    with pytest.raises(DataError, match="all dense times are 0"):
        ask_latency(f"{__name__}:zero", {"a": [DENSE]})
    with pytest.raises(DataError, match="0 or above; got '1.0'"):
        ask_latency(f"{__name__}:text", {"a": [DENSE]})


def test_a_function_of_ones_own() -> None:
    levels = {"a": [DENSE, parse_level("2:4")], "b": [DENSE]}
    table = ask_latency(f"{__name__}:seconds_of", levels)
    assert table.of("a", levels["a"]).tolist() == [2.0, 1.5]
    assert (table.whole, table.base) == (10.0, 6.0)
    with pytest.raises(DataError, match=r"seconds_of\('a', 'w4'\).*0 or above; got -1.0"):
        ask_latency(f"{__name__}:seconds_of", {"a": [DENSE, parse_level("w4")]})
    with pytest.raises(ConfigurationError, match="no_such_module:f"):
        ask_latency("no_such_module:f", levels)
