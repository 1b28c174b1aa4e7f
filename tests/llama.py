"""llama.cpp by the wheel `xllamacpp`, for what the log-probabilities of an exported file are; and
a small byte-level BPE tokenizer."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.needs import missing


def save_bpe(folder: Path, texts: list[str], size: int = 300, digits: bool = True) -> int:
    """A tokenizer of byte-level BPE that was trained on texts, as SmolLM's (`digits`) or GPT-2's
    splits them, in a folder as `save_pretrained` writes it. The number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    own.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytewise]) if digits else bytewise
    own.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=special[1], eos_token=special[0], unk_token=special[0]
    )
    made.save_pretrained(folder)
    return len(made)


@dataclass
class Llama:
    """A running server of llama.cpp's, with one file."""

    server: Any

    def tokens(self, text: str) -> list[int]:
        return [int(each) for each in self._post("tokenize", content=text)["tokens"]]

    def next_token(self, tokens: list[int], words: int) -> Tensor:
        """Log-probabilities [words] of what comes after the tokens."""
        letter = self.tokens("a")[0]  # a token that is no text would end the answer without them
        asked = {"n_predict": 1, "n_probs": words, "logit_bias": [[letter, 1000.0]]}
        answer = self._post("completion", prompt=tokens, **asked)
        found = answer["completion_probabilities"][0]["top_logprobs"]
        assert len(found) == words
        made = torch.full((words,), torch.nan)
        made[[each["id"] for each in found]] = torch.tensor([each["logprob"] for each in found])
        return made

    def _post(self, path: str, **content: Any) -> Any:
        asked = urllib.request.Request(
            f"{self.server.listening_address}/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read())


@contextmanager
def llama(file: Path) -> Iterator[Llama]:
    try:
        import xllamacpp
    except ImportError:
        missing("llama.cpp is not installed (pip install xllamacpp)")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 64, 1, 1
    settings.warmup, settings.verbosity = False, -1
    exact = xllamacpp.ggml_type.GGML_TYPE_F32  # keys and values would be float16
    settings.cache_type_k = settings.cache_type_v = exact
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    yield Llama(xllamacpp.Server(settings))
