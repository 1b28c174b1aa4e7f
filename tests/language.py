"""Small language models with random weights, a tokenizer of forty words, and texts of these: all of
it made here, without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def llama() -> nn.Module:
    """Its head is its embedding; two heads of queries share one of keys and values."""
    return _decoder("Llama", tie_word_embeddings=True)


def mixture() -> nn.Module:
    """Four experts, of which each token takes two."""
    return _decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2)


def _decoder(kind: str, **changes: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        use_cache=False,
        pad_token_id=0,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    return made.eval()


def save_gguf(file: Path) -> str:
    """A Llama with random weights and no tokenizer, as llama.cpp's tools write it."""
    gguf = pytest.importorskip("gguf")
    width, inner, kept = 32, 64, 16
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    shapes = {"token_embd": (VOCABULARY, width), "output": (VOCABULARY, width)}
    for i in range(2):
        own = {
            "q": (width, width),
            "k": (kept, width),
            "v": (kept, width),
            "output": (width, width),
        }
        shapes |= {f"blk.{i}.attn_{name}": shape for name, shape in own.items()}
        shapes |= {f"blk.{i}.ffn_{name}": (inner, width) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down"] = (width, inner)
    norms = ["output_norm", *(f"blk.{i}.{name}_norm" for i in range(2) for name in ("attn", "ffn"))]
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        values = 0.3 * torch.randn(shape, generator=generator)
        writer.add_tensor(f"{name}.weight", values.numpy())
    for name in norms:
        writer.add_tensor(f"{name}.weight", torch.ones(width).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


class Recurrent(nn.Module):
    """An LSTM over the tokens, and a class by what it gives on average. Both ways without padding,
    as torch packs it, which no exporter of programs takes; or left to right over all."""

    def __init__(self, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.words = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, 12, num_layers=2, bidirectional=both_ways, batch_first=True)
        self.head = nn.Linear(24 if both_ways else 12, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words, lengths = self.words(input_ids), attention_mask.sum(1)
        if self.both_ways:
            packed = nn.utils.rnn.pack_padded_sequence(
                words, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            states = self.lstm(words)[0] * attention_mask[..., None]
        logits: Tensor = self.head(states.sum(1) / lengths[:, None])
        return logits


def recurrent(both_ways: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent(both_ways).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.7 if parameter.dim() > 1 else 0.1)
    return model


def one_way() -> nn.Module:
    return recurrent(both_ways=False)


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
