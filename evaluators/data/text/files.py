"""Plain text for language models."""

from __future__ import annotations

from apportion.compressors.errors import DataError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.data.files import local_file
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.text.config import TextData
from apportion.evaluators.data.text.packing import pack
from apportion.evaluators.data.text.parts import each_part
from apportion.evaluators.data.text.tokenizer import load_tokenizer


@reads(TextData)
def read_text(config: TextData, context: Context) -> Splits:
    if context.form not in (forms.TOKENS, forms.MASKED):
        raise DataError(
            "workload.data.kind",
            f"text is for language models (causal-lm, masked-lm), not for task {context.task}: use "
            "csv, jsonl or parquet, whose rows have labels",
        )
    tokenizer = load_tokenizer(config, context)
    seed = config.seed if context.form == forms.MASKED else None

    def part(name: str, location: str) -> TensorDataset:
        return pack(tokenizer, [_content(location, name)], name, seed)

    return each_part(config, part)


def _content(location: str, part: str) -> str:
    path = local_file(location)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if not path.is_file() else f"not readable as UTF-8 text ({error})"
        raise DataError(f"workload.data.{part}", f"{path}: {reason}") from error
