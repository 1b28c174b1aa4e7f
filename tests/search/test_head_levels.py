"""Attention heads and whole branches as levels, of transformers' own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apportion
from apportion.compressors.errors import ModelError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import DENSE, DROP, parse_level
from apportion.db.runs.store import RunStore
from apportion.evaluators.costs.channels.tables import counts
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.search.export.exporting import export, score_profile
from apportion.search.runs.pipeline import ModelProblem, run_search

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, use_cache=False
    )
    made: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return made


def bert() -> nn.Module:
    config = transformers.BertConfig(**SMALL, num_attention_heads=4, num_labels=3)
    made: nn.Module = transformers.BertForSequenceClassification(config).eval()
    return made


def mean_square(out: torch.Tensor, _: Any) -> torch.Tensor:
    return out.square().mean(tuple(range(1, out.dim())))


def problem(make: Callable[[], nn.Module], tmp_path: Path) -> ModelProblem:
    torch.manual_seed(0)
    ids = torch.randint(0, 64, (24, 12))
    task = apportion.Task(
        forward=lambda model, batch: model(input_ids=batch).logits,
        loss=mean_square,
        metric=mean_square,
        name="mean square",
        higher_is_better=False,
        divergence="kl",
    )
    return apportion.prepare(
        make(),
        task=task,
        calibration=[ids],
        test=[ids],
        levels=["dense", "channels-0.50", "heads-0.25", "heads-0.50", "drop"],
        budgets={"flops": 0.8},
        database=tmp_path / "d",
        database_options={"channels": {"multiple": 4}},
        search={"algorithms": ["milp"], "evaluations": 4},
    )


@pytest.mark.parametrize("make", [llama, bert])
def test_heads_and_branches_go_and_what_was_counted_is_there(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    with problem(make, tmp_path) as own:
        heads = {n: levels for n, levels in own.levels().items() if n.endswith(".heads")}
        assert len(heads) == 2
        shared = make is llama  # two key/value heads, each with two query heads
        for levels in heads.values():
            asked = ["heads-0.50"] if shared else ["heads-0.25", "heads-0.50"]
            assert levels == ["dense", *asked, "drop"]
        assert own.channels is not None
        model, smaller = own.workload.model, Smaller(own.workload.model, own.channels)
        names = list(own.levels())
        for chosen in ({names[0]: DROP}, {names[1]: DROP}, dict.fromkeys(heads, DROP)):
            profile = {**dict.fromkeys(names, DENSE), **chosen}
            small = smaller(profile)
            found = find_layers(small, own.workload.traced_pass())
            there = sum(p.numel() for p in small.parameters())
            assert counts(model, own.channels, profile) == (
                there,
                sum(found.macs.values()) + found.base,
            )
            assert there < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [llama, bert])
def test_a_model_with_fewer_heads_is_exported_and_made_again(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    with problem(make, tmp_path) as own:
        (result,) = run_search(own, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))
        made = export(result, own, tmp_path / "out", formats=["safetensors", "onnx"])
        assert made.content["costs"]["flops"] <= 0.8
        assert own.channels is not None
        small = Smaller(own.workload.model, own.channels)(
            {name: parse_level(level) for name, level in made.content["profile"].items()}
        )
    again = make()
    apportion.resize(again, json.loads((tmp_path / "out" / "shapes.json").read_text()))
    from safetensors.torch import load_model

    load_model(again, str(tmp_path / "out" / "model.safetensors"))
    ids = torch.randint(0, 64, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, small(input_ids=ids).logits)


def test_a_dropped_branch_puts_out_its_mean(tmp_path: Path) -> None:
    """BERT's layers have biases, which take what is gone for its mean."""
    with problem(bert, tmp_path) as own:
        assert own.channels is not None
        name = next(n for n in own.levels() if n.endswith(".channels"))
        profile = {**dict.fromkeys(own.levels(), DENSE), name: DROP}
        small = Smaller(own.workload.model, own.channels)(profile)
        seen: list[torch.Tensor] = []
        for model in (own.workload.model, small):
            layer = model.get_submodule("bert.encoder.layer.0.output.dense")
            handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
            with torch.no_grad():
                own.workload.task.forward(model, own.workload.calibration.batch)
            handle.remove()
        whole, constant = seen
        torch.testing.assert_close(
            constant, whole.mean((0, 1)).expand_as(constant), rtol=1e-3, atol=1e-4
        )


def test_an_attention_without_heads_is_no_onnx_file(tmp_path: Path) -> None:
    """Its shapes have zeros, which torch.onnx cannot write."""
    with problem(bert, tmp_path) as own:
        name = next(n for n in own.levels() if n.endswith(".heads"))
        profile = {**dict.fromkeys(own.levels(), DENSE), name: DROP}
        chosen = score_profile(profile, own, "here")
        with pytest.raises(ModelError, match=r"all went \(drop\): bert.encoder.layer.0.*is empty"):
            export(chosen, own, tmp_path / "out", formats=["onnx"])
        assert not (tmp_path / "out").exists()
        made = export(chosen, own, tmp_path / "out", formats=["safetensors", "torch"])
        assert made.content["exports"]["model.pt2"]["largest_difference"] < 1e-4
