"""Small language models with random weights, a tokenizer of forty words, and texts of these: all of
it made here, without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"{a}{b}" for a in ("ba", "do", "fi", "ku", "le") for b in "bdfgklmn"]
VOCABULARY = len(SPECIAL) + len(WORDS) + 1  # and the full stop
POSITIONS = 48


def save_tokenizer(folder: Path, extra: int = 0, **changes: Any) -> str:
    """A tokenizer as BERT has it, in a folder as `save_pretrained` writes it; with `extra` words
    that no model here knows."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, ".", *(f"extra{i}" for i in range(extra))]
    own = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    named = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    named["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(tokenizer_object=own, **{**named, **changes})
    made.save_pretrained(folder)
    return str(folder)


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def _bert(kind: str, **changes: Any) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = getattr(transformers, kind)(config)
    return made.eval()


def classifier() -> nn.Module:
    return _bert("BertForSequenceClassification", num_labels=3)


def encoder() -> nn.Module:
    return _bert("BertModel")


def masked() -> nn.Module:
    return _bert("BertForMaskedLM")


def answerer() -> nn.Module:
    return _bert("BertForQuestionAnswering")


def causal() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        use_cache=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()


def write_squad(path: Path, paragraphs: list[dict[str, Any]]) -> str:
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content))
    return str(path)


def paragraph(context: str, *answers: str | None) -> dict[str, Any]:
    """A paragraph with a question for each answer, which is a part of the context; None: there is
    none."""
    asked = []
    for number, answer in enumerate(answers):
        right = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
        asked.append(
            {
                "id": f"q{number}",
                "question": f"{WORDS[number]} {WORDS[number + 1]}",
                "answers": right,
                "is_impossible": answer is None,
            }
        )
    return {"context": context, "qas": asked}
