"""A folder of transformers': what `from_pretrained` loads, with the files that the dense model has
beside its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from apportion.compressors.errors import ModelError, first_line
from apportion.evaluators.data.text.pretrained import PREFIX, Pretrained, pretrained, quiet
from apportion.evaluators.models.huggingface import Logits, load
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Runner
from apportion.search.jobs.job import Job
from apportion.search.runs.pipeline import ModelProblem

_CONFIG = "config.json"
_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "preprocessor_config.json"),
    *("processor_config.json", "generation_config.json", "sentence_bert_config.json"),
)
"""What models have in one folder with their weights: tokenizers and processors."""
_ABOVE = ("modules.json", "config_sentence_transformers.json")
"""What sentence-transformers has in the folder of the whole."""


class HuggingFace(Format):
    """What `save_pretrained` writes, in floats and by the names of the checkpoint, tied weights
    once; with tokenizer and other small files of the dense model."""

    name = "huggingface"
    file, runtime, on_device = "huggingface", "transformers", True
    tolerance: float | None = 0.0

    def check_job(self, job: Job) -> None:
        name = job.workload.name
        if job.database.has_channels:
            raise ModelError(
                f"export format {self.name}: a configuration does not say which channels are left; "
                "safetensors writes shapes.json, which does"
            )
        if not name.startswith(PREFIX):
            raise ModelError(
                f"export format {self.name}: model {name!r} is none of transformers' "
                f"({PREFIX}NAME); safetensors has its state dict"
            )

    def check(self, problem: ModelProblem) -> None:
        self.check_job(problem.job)

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        source, folder = self.source(subject), self.folder(subject, path)
        folder.mkdir(parents=True)
        with quiet():
            inner(subject.model).save_pretrained(folder, state_dict=self.state(subject))
        _restore_cache(folder / _CONFIG, source.read(source.inside(_CONFIG)))
        return _copy_beside(source, folder, path)

    def state(self, subject: CompressedModel) -> dict[str, Tensor]:
        """What is saved, by the names of transformers' module."""
        state: dict[str, Tensor] = inner(subject.model).state_dict()
        return state

    def source(self, subject: CompressedModel) -> Pretrained:
        """Where the dense model comes from."""
        return pretrained(subject.problem.job.workload.name.removeprefix(PREFIX))

    def folder(self, subject: CompressedModel, path: Path) -> Path:
        """Where in `path` the weights are."""
        return path / self.source(subject).options.get("subfolder", "")

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        return load(str(path), subject.problem.workload.task).eval()

    def size(self, path: Path) -> int:
        """Of the weights."""
        return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


def inner(model: Any) -> Any:
    """The model as transformers made it."""
    return model.classifier if isinstance(model, Logits) else model


def _restore_cache(file: Path, before: Any) -> None:
    """Models run here without a cache of keys and values; whoever loads this gets one, unless the
    dense model's configuration says otherwise."""

    def restored(now: Any, then: Any) -> Any:
        if not isinstance(now, dict):
            return now
        then = then if isinstance(then, dict) else {}
        return {
            key: restored(value, then.get(key))
            for key, value in now.items()
            if key != "use_cache" or value or then.get(key) is False
        }

    content = restored(json.loads(file.read_text(encoding="utf-8")), before)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _copy_beside(source: Pretrained, folder: Path, above: Path) -> list[str]:
    """Copy the small files to `folder`, and to the one `above` it where they lie there; what could
    not be had is told."""
    wanted = [(file, folder / Path(file).name) for file in map(source.inside, _BESIDE)]
    steps = [f"{step}/{_CONFIG}" for _, step in source.modules]
    wanted += [(file, above / file) for file in (*_ABOVE, *steps)]
    for file, target in wanted:
        found = source.find(file)
        if found is not None:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(found, target)
    if "gguf_file" not in source.options:
        return []
    from transformers import AutoTokenizer

    try:
        with quiet():
            AutoTokenizer.from_pretrained(source.name, **source.options).save_pretrained(folder)
    except Exception as error:  # not every tokenizer of GGUF is known to transformers
        return [f"its tokenizer could not be taken from the GGUF file ({first_line(error)})."]
    return []
