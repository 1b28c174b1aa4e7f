"""The tokenizer of a model of transformers' as metadata of a GGUF file: byte-level BPE, or that of
the GGUF file that the model came from, as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ModelError, first_line
from apportion.evaluators.data.text.pretrained import Pretrained, pretrained, quiet

_NORMAL, _CONTROL, _ADDED, _UNUSED = 1, 3, 4, 5
"""Types of tokens (gguf.TokenType)."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
"""Regular expression -> what llama.cpp calls it."""


class Vocabulary:
    """name: of a tokenizer, as jobs have it; size: rows of the embedding. Raises ModelError for one
    that llama.cpp does not have."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        source = pretrained(name)
        self.fields = _copied(source) if "gguf_file" in source.options else self._made(source)
        count = len(self.fields.get("tokenizer.ggml.tokens", (0, [], None))[1])
        if count != size:
            raise ModelError(
                f"export format gguf: tokenizer {name!r} has {count} tokens, the model's embedding "
                f"{size} rows"
            )

    def describe(self, writer: Any) -> None:
        """Into a GGUFWriter."""
        for key, (kind, value, inner) in self.fields.items():
            writer.add_key_value(key, value, kind, inner)

    def _made(self, source: Pretrained) -> dict[str, tuple[Any, Any, Any]]:
        from gguf import GGUFValueType as Kind
        from transformers import AutoTokenizer

        try:
            with quiet():
                own = AutoTokenizer.from_pretrained(
                    source.name, use_fast=True, trust_remote_code=False, **source.options
                )
            content = json.loads(own.backend_tokenizer.to_str())
        except Exception as error:  # not there, or what its file's own library raises
            raise ModelError(
                f"export format gguf: {self._name!r} has no tokenizer ({first_line(error)})"
            ) from error
        model = content["model"]
        if model["type"] != "BPE" or model.get("byte_fallback"):
            self._refuse(f"a {model['type']} model" if model["type"] != "BPE" else "byte_fallback")
        splitting = self._splitting(content.get("pre_tokenizer"))
        if bool(model.get("ignore_merges")) != (splitting == "llama-bpe"):
            self._refuse(f"ignore_merges {model.get('ignore_merges')!r} with {splitting}")
        tokens, types = self._tokens(own)
        text, numbers = Kind.STRING, Kind.INT32
        fields = {
            "tokenizer.ggml.model": (text, "gpt2", None),
            "tokenizer.ggml.pre": (text, splitting, None),
            "tokenizer.ggml.tokens": (Kind.ARRAY, tokens, text),
            "tokenizer.ggml.token_type": (Kind.ARRAY, types, numbers),
            "tokenizer.ggml.merges": (Kind.ARRAY, _merges(model), text),
            "tokenizer.ggml.add_space_prefix": (Kind.BOOL, False, None),
        }
        around = own("a")["input_ids"]
        for name, long, at in (("bos", "bos", 0), ("eos", "eos", -1)):
            number = getattr(own, f"{name}_token_id")
            adds = bool(around) and number is not None and around[at] == number
            fields[f"tokenizer.ggml.add_{long}_token"] = (Kind.BOOL, adds, None)
        for name, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            number = getattr(own, f"{name}_token_id")
            if number is not None:
                fields[f"tokenizer.ggml.{long}_token_id"] = (Kind.UINT32, number, None)
        if isinstance(own.chat_template, str):
            fields["tokenizer.chat_template"] = (text, own.chat_template, None)
        return fields

    def _tokens(self, own: Any) -> tuple[list[str], list[int]]:
        """By number; the embedding may have more rows than there are tokens."""
        names = {number: token for token, number in own.get_vocab().items()}
        added = own.added_tokens_decoder
        tokens, types = [], []
        for number in range(max(self._size, len(names))):
            tokens.append(names.get(number, f"[PAD{number}]"))
            if number in added:
                types.append(_CONTROL if added[number].special else _ADDED)
            else:
                types.append(_NORMAL if number in names else _UNUSED)
        return tokens, types

    def _splitting(self, content: Any) -> str:
        """llama.cpp's name for how text is split before merges are looked for."""
        steps = content["pretokenizers"] if content and content["type"] == "Sequence" else [content]
        kinds = [step and step["type"] for step in steps]
        last = steps[-1] or {}
        plain = kinds[-1] == "ByteLevel" and not last.get("add_prefix_space")
        regex = last.get("use_regex", True)
        if plain and kinds == ["ByteLevel"] and regex:
            return "gpt-2"
        if plain and kinds == ["Digits", "ByteLevel"] and regex and steps[0]["individual_digits"]:
            return "smollm"
        if plain and kinds == ["Split", "ByteLevel"] and not regex:
            found = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
            if found and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
                return found
        return self._refuse(f"the pre-tokenizer {json.dumps(content)}")

    def _refuse(self, what: str) -> str:
        raise ModelError(
            f"export format gguf: tokenizer {self._name!r} has {what:.200}; byte-level BPE as "
            "GPT-2, SmolLM, Llama 3 or Qwen2 have it, and tokenizers of GGUF files, can be written"
        )


def _copied(source: Pretrained) -> dict[str, tuple[Any, Any, Any]]:
    """Of the GGUF file that `source` is."""
    import gguf

    reader = gguf.GGUFReader(Path(source.name) / source.options["gguf_file"])
    return {
        name: (field.types[0], field.contents(), field.types[-1] if field.types[1:] else None)
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.")
    }


def _merges(model: Any) -> list[str]:
    return [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
