"""The layer errors that a database records of transformers' layers are those that are measured by
running the real modules on the calibration samples, each at its own length."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import call
from apportion.compressors.levels import DENSE, parse_level
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.models.huggingface import Logits
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.tasks.text.causal_lm import CausalLM
from apportion.evaluators.tasks.text.text_classification import TextClassification
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare_model
from tests.pretrained import make, texts

pytest.importorskip("transformers", reason="apportion[huggingface] is not installed")

LEVELS = ["unstr-0.50", "2:4", "w3", "rtn:w4", "2:4+w4"]
Products = Callable[[Any, tuple[Any, ...]], Tensor]
"""What a module's products with a weight put out, of the module and what it is called with."""


def output(module: Any, given: tuple[Any, ...]) -> Tensor:
    found: Tensor = module(*given)
    return found


def router(module: Any, given: tuple[Any, ...]) -> Tensor:
    """A mixture's logits, before the softmax that its outputs have passed."""
    return given[0].reshape(-1, module.weight.shape[1]) @ module.weight.T


def expert(number: int, down: bool) -> Products:
    """One expert's product, for the tokens that are given to it."""

    def run(module: Any, given: tuple[Any, ...]) -> Tensor:
        hidden, chosen, _ = given
        rows = hidden[(chosen == number).any(1)]
        inner = rows @ module.gate_up_proj[number].T
        if not down:
            return inner
        gate, up = inner.chunk(2, -1)
        return (module.act_fn(gate) * up) @ module.down_proj[number].T

    return run


def bert() -> tuple[nn.Module, Task, TensorDataset]:
    return make("BertForSequenceClassification", num_labels=3), TextClassification(), texts(40, 1)


def causal(name: str) -> Callable[[], tuple[nn.Module, Task, TensorDataset]]:
    return lambda: (make(name, use_cache=False), CausalLM(), texts(40, 1))


def vit() -> tuple[nn.Module, Task, TensorDataset]:
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Logits(make("ViTForImageClassification"))
    return model, ImageClassification(), TensorDataset((images, torch.arange(12) % 10))


BERT, LLAMA, MIXTRAL = "bert.encoder.layer.1", "model.layers.1", "model.layers.0.mlp.experts"
Layers = dict[str, tuple[str, Products]]
"""Layer -> the module that it is in, and its products."""


def whole(*names: str) -> Layers:
    return {name: (name, output) for name in names}


CASES: dict[str, tuple[Any, Layers]] = {
    "bert": (
        bert,
        whole(
            "bert.embeddings.word_embeddings",
            f"{BERT}.attention.self.query",
            f"{BERT}.output.dense",
            "bert.pooler.dense",
        ),
    ),
    "llama": (
        causal("LlamaForCausalLM"),
        whole(
            "model.embed_tokens",
            f"{LLAMA}.self_attn.q_proj",
            f"{LLAMA}.self_attn.k_proj",  # half as many heads
            f"{LLAMA}.mlp.down_proj",
            "lm_head",
        ),
    ),
    "gpt-2": (
        causal("GPT2LMHeadModel"),
        whole("transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    ),
    "mixture": (
        causal("MixtralForCausalLM"),
        {
            f"{MIXTRAL}.gate_up_proj.2": (MIXTRAL, expert(2, down=False)),
            f"{MIXTRAL}.down_proj.1": (MIXTRAL, expert(1, down=True)),
            "model.layers.1.mlp.gate": ("model.layers.1.mlp.gate", router),
        },
    ),
    "vit": (
        vit,
        whole(
            "classifier.vit.embeddings.patch_embeddings.projection",
            "classifier.classifier",
        ),
    ),
}


@pytest.mark.parametrize(("build", "layers"), CASES.values(), ids=CASES)
def test_recorded_layer_errors_are_measured_ones(
    build: Any, layers: Layers, tmp_path: Path
) -> None:
    model, task, data = build()
    content = {
        "workload": {"model": "given:it", "data": {"kind": "digits"}, "batch_size": 16},
        "database": {"path": str(tmp_path / "database"), "levels": ["dense", *LEVELS]},
        "budgets": {"bits": 0.99},
    }
    job = parse_model_job(content, tmp_path / "job.yaml")
    with prepare_model(job, workload=Workload(model, data, data, data, 16, task=task)) as problem:
        database = problem.database
    for layer, (module, products) in layers.items():
        dense = model.get_submodule(module)
        given = inputs_of(dense, model, task, data)
        levels = database.levels()[layer]
        assert len(levels) >= 3
        for level in levels[1:]:
            changed = copy.deepcopy(model)
            profile = dict.fromkeys(database.layers, DENSE) | {layer: parse_level(level)}
            database.stitch(changed, profile)
            other = changed.get_submodule(module)
            with torch.no_grad():
                moved = sum(
                    float((products(other, one).double() - products(dense, one)).square().sum())
                    for one in given
                )
            assert moved > 0
            recorded = database.entry(layer, level).error
            assert recorded == pytest.approx(moved / len(data), rel=1e-5), (layer, level)


def inputs_of(
    module: nn.Module, model: nn.Module, task: Task, data: TensorDataset
) -> list[tuple[Any, ...]]:
    """What the module is called with for every sample alone, without padding."""
    found: list[tuple[Any, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, given: found.append(given))
    for at in range(len(data)):
        own = task.inputs(data.subset([at]).batch)
        if isinstance(own, dict):
            counted = own["attention_mask"][0].bool()
            own = {name: tensor[:, counted] for name, tensor in own.items()}
        with torch.no_grad():
            call(model, own)
    hook.remove()
    assert len(found) == len(data)
    return found
