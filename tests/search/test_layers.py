"""The job file's `layers`, and the decisions that they leave open."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import expand_levels
from apportion.search.jobs.layers import LayersConfig
from apportion.search.space.decisions import Decisions
from apportion.search.space.space import SearchSpace

NAMES = ["conv1", "block.0.q_proj", "block.0.k_proj", "block.1.q_proj", "block.1.k_proj", "head"]
LAYERS = [
    LayerSpec(name, "linear", (4, 9 if name == "conv1" else 16), 1, 4, 9 if name == "conv1" else 16)
    for name in NAMES
]
DEFAULT = expand_levels(["dense", "unstr-0.50", "unstr-0.90", "2:4+w4", "w8"])


def config(**content: Any) -> LayersConfig:
    return LayersConfig.model_validate(content)


def built(**content: Any) -> dict[str, list[str]]:
    return {
        name: list(map(str, levels))
        for name, levels in config(**content).built(LAYERS, DEFAULT).items()
    }


def test_without_exceptions_all_layers_get_all_levels() -> None:
    assert set(map(tuple, built().values())) == {tuple(map(str, DEFAULT))}


def test_skipped_fixed_and_other_levels() -> None:
    found = built(
        skip=["block.1.*"],
        first="w8",
        last="dense",
        levels={"block.*": ["w8", "2:4"], "block.0.k*": ["unstr-0.50"]},
    )
    assert found["conv1"] == ["dense", "w8"]
    assert found["block.0.q_proj"] == ["dense", "w8", "2:4"]
    assert found["block.0.k_proj"] == ["dense", "unstr-0.50"]
    assert found["block.1.q_proj"] == ["dense"]
    assert found["head"] == ["dense"]


def test_what_the_search_may_choose() -> None:
    levels = {name: ["dense", "unstr-0.50", "unstr-0.90", "2:4+w4", "w8"] for name in NAMES}
    free = config().allowed(levels)
    assert free == [[0, 1, 2, 3, 4]] * 6
    ranges = config(
        sparsity={"*": (0, 0.8), "head": (0.5, 1)}, bits={"block.0.*": (4, 8)}, first="w8"
    ).allowed(levels)
    assert ranges == [[4], [3, 4], [3, 4], [0, 1, 3, 4], [0, 1, 3, 4], [1, 2, 3]]
    assert config(levels={"head": ("w8",)}).allowed({"head": ["dense", "w8"]}) == [
        [1]
    ]  # dense is built, and not a choice


def test_what_is_tied_shares_a_parent() -> None:
    assert config(tie=[["q_proj", "k_proj"]]).tied(NAMES) == [[0], [1, 2], [3, 4], [5]]
    assert config(tie=[["conv1", "head"]]).tied(NAMES) == [[0, 5], [1], [2], [3], [4]]
    assert config(tie=[["block.*.q_proj"]]).tied(NAMES) == [[0], [1, 3], [2], [4], [5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"skip": ["conv2"]}, "layers: unknown layer 'conv2'; did you mean 'conv1'"),
        ({"levels": {"tail": ["w8"]}}, "unknown layer 'tail'"),
        ({"first": "2:4"}, "level '2:4' does not fit layer 'conv1' of 9 columns"),
    ],
)
def test_bad_patterns_and_levels(content: dict[str, Any], message: str) -> None:
    with pytest.raises((UnknownNameError, ConfigurationError), match=message):
        built(**content)


def test_ranges_and_ties_that_leave_nothing() -> None:
    levels = {name: ["dense", "w8"] for name in NAMES}
    with pytest.raises(
        ConfigurationError, match=r"layer 'conv1' is inside its ranges \(it has dense, w8\)"
    ):
        config(bits={"*": (2, 4)}).allowed(levels)
    with pytest.raises(ConfigurationError, match=r"'head' is in two sets"):
        config(tie=[["conv1", "head"], ["head"]]).tied(NAMES)
    with pytest.raises(UnknownNameError, match=r"layers\.tie: unknown layer 'v_proj'"):
        config(tie=[["q_proj", "v_proj"]]).tied(NAMES)


@pytest.mark.parametrize(
    "content",
    [
        {"first": "2:"},
        {"levels": {"*": ["filter-1.5"]}},
        {"bits": {"*": (8, 4)}},
        {"skipp": []},
        {"tie": "all"},
        {"tie": ["a"]},
    ],
)
def test_bad_values_are_the_files_errors(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**content)


def space() -> SearchSpace:
    return SearchSpace(
        layers=("a", "b", "c"),
        levels=(("dense", "w8", "w4"), ("dense", "w4"), ("w4", "dense", "w8")),
        costs={"bits": (np.array([32.0, 8, 4]), np.array([64.0, 8]), np.array([4.0, 32, 8]))},
        base={"bits": 10.0},
        dense={"bits": 138.0},
        budgets={"bits": 100.0},
        errors=(np.array([0.0, 1, 2]), np.array([0.0, 5]), np.array([7.0, 0, 3])),
    )


def test_tied_layers_are_one_decision_whose_costs_add_up() -> None:
    whole = space()
    decisions = Decisions.make(whole, [[0, 1, 2], [0, 1], [0, 1, 2]], [[0, 2], [1]])
    reduced = decisions.reduce(whole)
    assert reduced.layers == ("a+c", "b")
    assert reduced.levels == (("dense", "w8", "w4"), ("dense", "w4"))
    for candidate in ((0, 0), (1, 1), (2, 0)):
        full = decisions.expand(candidate)
        assert (
            whole.levels[0][full[0]] == whole.levels[2][full[2]] == reduced.levels[0][candidate[0]]
        )
        assert reduced.total("bits", candidate) == whole.total("bits", full)
        assert reduced.error(candidate) == whole.error(full)
        assert reduced.feasible(candidate) == whole.feasible(full)
    assert not decisions.is_free(whole)
    assert Decisions.make(whole, [[0, 1, 2], [0, 1], [0, 1, 2]], [[0], [1], [2]]).is_free(whole)


def test_tied_layers_without_a_common_level() -> None:
    with pytest.raises(ConfigurationError, match="'a', 'b' have no level in common"):
        Decisions.make(space(), [[1], [0, 1], [0]], [[0, 1], [2]])


def test_what_stays_dense_anyway_may_be_skipped() -> None:
    """By any name of a tied weight: no product uses it under a second one."""
    found = config(skip=["lm_head"]).built(LAYERS, DEFAULT, ["lm_head", "lm_head.weight"])
    assert set(map(tuple, found.values())) == {tuple(DEFAULT)}
    with pytest.raises(UnknownNameError, match="lm_haed"):
        config(skip=["lm_haed"]).built(LAYERS, DEFAULT, ["lm_head"])
    with pytest.raises(UnknownNameError, match="lm_head"):
        config(levels={"lm_head": ["w8"]}).built(LAYERS, DEFAULT, ["lm_head"])
