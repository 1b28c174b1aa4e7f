"""What llama.cpp must know of a model of transformers' beside its weights: its sizes, the names of
its tensors, and the order of their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from apportion.compressors.errors import ModelError

_NAMES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Class of transformers -> architecture of llama.cpp."""
_TURNS = ("default", "linear", "llama3")
"""Kinds of rotary positions whose frequencies do not depend on the length of the text."""


class Architecture:
    """Of a model. Raises ModelError for one that llama.cpp would run in another way, or not at
    all."""

    def __init__(self, model: nn.Module) -> None:
        import gguf

        kind = type(model).__name__
        if kind not in _NAMES:
            raise ModelError(
                f"export format gguf: the model is a {kind}; {', '.join(_NAMES)} are known"
            )
        self.name = _NAMES[kind]
        config: Any = model.config
        self.config = config
        self.heads: int = config.num_attention_heads
        self.pairs: int = config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        rotary: Any = model.model.rotary_emb  # type: ignore[union-attr]
        turning: dict[str, Any] = config.rope_parameters
        self.base = float(turning["rope_theta"])
        for what, value, known in (
            ("hidden_act", config.hidden_act, ("silu",)),
            ("rope_type", turning.get("rope_type", "default"), _TURNS),
            ("partial_rotary_factor", turning.get("partial_rotary_factor", 1.0), (1.0,)),
            ("use_sliding_window", getattr(config, "use_sliding_window", False), (False,)),
        ):
            if value not in known:
                raise ModelError(
                    f"export format gguf: the configuration has {what} {value!r}; only "
                    f"{', '.join(map(str, known))} can be told to llama.cpp"
                )
        plain = self.base ** (-torch.arange(0, self.width, 2).double() / self.width)
        factors = plain / rotary.inv_freq.double().cpu()
        self.factors = None if (factors - 1).abs().max() < 1e-4 else factors.float()
        if self.factors is not None and self.name != "llama":
            raise ModelError("export format gguf: llama.cpp scales rotary positions of Llama alone")
        kind = getattr(gguf.MODEL_ARCH, self.name.upper())
        self._tensors = gguf.get_tensor_name_map(kind, config.num_hidden_layers)

    def tensor(self, parameter: str) -> str:
        """A parameter's name in the file. Raises ModelError."""
        found = self._tensors.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"export format gguf: llama.cpp has no tensor for {parameter!r}")
        return str(found)

    def order(self, tensor: str, rows: int) -> np.ndarray | None:
        """Row i of the file -> row of the model; None where they are the same. llama.cpp turns
        neighbours in Llama's queries and keys, transformers the two halves of a head."""
        part = tensor.split(".")[-2]
        if self.name != "llama" or part not in ("attn_q", "attn_k"):
            return None
        heads = self.heads if part == "attn_q" else self.pairs
        return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)

    def describe(self, writer: Any) -> None:
        """Sizes as metadata of a GGUFWriter."""
        config = self.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.pairs)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(self.base)
        writer.add_rope_dimension_count(self.width)
        writer.add_vocab_size(config.vocab_size)
        if self.width * self.heads != config.hidden_size:
            writer.add_key_length(self.width)
            writer.add_value_length(self.width)
