"""Models of Hugging Face's transformers: from the hub, or from a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apportion.compressors.errors import (
    ConfigurationError,
    ModelError,
    WeightsError,
    first_line,
)
from apportion.evaluators.data.text.pretrained import PREFIX, Pretrained, pretrained, quiet
from apportion.evaluators.models.checkpoints import check_types, read_state
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.task import Task

_POOLER = re.compile(r"pooler\.dense\.(weight|bias)")
_HARMLESS = ("Normalize",)
"""Steps after a sentence's embedding that change no cosine."""


class Logits(nn.Module):
    """The classifier's logits [N, classes] for pixel values [N, C, H, W]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pixel_values=pixel_values).logits
        return logits


def class_names(model: nn.Module) -> list[str] | None:
    """The names that the configuration of a model of transformers has for its logits, in their
    order; None for what is no such model, or has none."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return [labels[index] for index in sorted(labels)] if labels else None


def load(name: str, task: Task, weights: Path | None = None) -> nn.Module:
    """The model `name` in float32, as the Auto class of its task makes it: named as in the
    checkpoint, without a cache of keys and values. Image classifiers come as `Logits`. Code from
    the hub is never run.

    Args:
        name: an id on the hub, a folder, or a GGUF file.
        task: says which Auto class, and how a sentence's embedding is pooled.
        weights: a file to take instead of the checkpoint, which need not be there then.

    Raises:
        ModelError: not there, not for this task, no safetensors or GGUF, weights that are missing,
            another pooling than the task's.
        WeightsError: the file holds other weights than the model's.
        ConfigurationError: transformers has no such Auto class.
    """
    source = pretrained(name)
    _check_modules(source, task)
    kind = _auto(task.auto)
    try:
        with quiet():
            made = _given(source, kind, weights) if weights else _own(source, name, kind, task)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        # not there, no network, not for this task, weights of another shape, no package gguf
        wanted = "no model" if weights else f"no model with {source.weights}"
        raise ModelError(
            f"model '{PREFIX}{name}': {task.auto} finds {wanted} ({first_line(error)})"
        ) from error
    return _finished(made, task)


def empty(name: str, task: Task) -> nn.Module:
    """The same without weights, which are to be loaded. Raises ModelError, ConfigurationError."""
    import transformers

    source = pretrained(name)
    _check_modules(source, task)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(
                source.name, trust_remote_code=False, **source.options
            )
            made = _auto(task.auto).from_config(config, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(
            f"model '{PREFIX}{name}': {task.auto} finds no model ({first_line(error)})"
        ) from error
    return _finished(made, task)


def _finished(made: Any, task: Task) -> nn.Module:
    for module in made.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    made = made.float()  # some are stored in half precision
    return Logits(made) if task.auto == ImageClassification.auto else made


def _auto(name: str) -> Any:
    """Raises ConfigurationError."""
    import transformers

    found = getattr(transformers, name, None) if name.startswith("AutoModel") else None
    if found is None:
        raise ConfigurationError(
            f"transformers has no class {name!r} for models; a task's `auto` names one, such as "
            "AutoModel or AutoModelForTokenClassification"
        )
    return found


def _own(source: Pretrained, name: str, kind: Any, task: Task) -> Any:
    """The model with the weights of its checkpoint. Raises ModelError where some are missing, which
    transformers would make up."""
    gguf = "gguf_file" in source.options
    made, info = kind.from_pretrained(
        source.name,
        output_loading_info=True,
        trust_remote_code=False,
        **source.options,
        **({} if gguf else {"use_safetensors": True}),
    )
    missing = sorted(info["missing_keys"])
    if missing and all(_POOLER.fullmatch(key) for key in missing):
        made.pooler = None  # what was trained for other tasks has none, and few tasks need it
    elif missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ModelError(
            f"model '{PREFIX}{name}': {task.auto} needs weights that its checkpoint does not have: "
            f"{', '.join(missing[:5])}{more}; name a model that was trained for the task "
            f"{task.identity!r}, or give a file with all weights as workload.weights"
        )
    return _plain(made) if gguf else made


def _given(source: Pretrained, kind: Any, weights: Path) -> Any:
    """The model with the weights of a file, which has them by the names of the checkpoint or of the
    model. Raises WeightsError."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        source.name, trust_remote_code=False, **source.options
    )
    empty = kind.from_config(config, trust_remote_code=False)
    own = empty.state_dict()
    state = read_state(weights, own)
    check_types(state, own, weights)
    made, info = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=state,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    missing, unexpected = (sorted(info[key]) for key in ("missing_keys", "unexpected_keys"))
    mismatched = [
        f"{key} {list(found)} instead of {list(wanted)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    if missing or unexpected or mismatched:
        raise WeightsError(str(weights), missing, unexpected, mismatched)
    return made


def _plain(made: Any) -> Any:
    """A model read from GGUF as one of its own: transformers would refuse to save it."""
    content = made.config.to_dict()
    content.pop("quantization_config", None)
    fresh = type(made)(type(made.config).from_dict(content))
    fresh.load_state_dict(made.state_dict())
    return fresh.eval()


def _check_modules(source: Pretrained, task: Task) -> None:
    """Whether a sentence-transformers folder makes embeddings as a task with `pooling` does. Raises
    ModelError."""
    wanted = getattr(task, "pooling", None)
    if wanted is None:
        return
    for kind, folder in source.modules:
        if kind == "Pooling":
            found = _pooling(source.read(f"{folder}/config.json"))
            if found != [wanted]:
                raise ModelError(
                    f"model '{PREFIX}{source.name}': its {folder}/config.json says pooling "
                    f"{' and '.join(found) or 'unknown'}, workload.task.pooling is {wanted}"
                )
        elif kind not in _HARMLESS:
            raise ModelError(
                f"model '{PREFIX}{source.name}': a module {kind} ({folder}) follows its pooling, "
                "which the task does not apply; embeddings must be the pooled outputs"
            )


def _pooling(config: Any) -> list[str]:
    """The ways of pooling in a module's config: `pooling_mode: mean`, or, as older versions wrote
    them, `pooling_mode_mean_tokens: true` and the like."""
    if not isinstance(config, dict):
        return []
    mode = config.get("pooling_mode")
    if mode is not None:
        return [str(each) for each in (mode if isinstance(mode, list) else [mode])]
    prefix, suffix = "pooling_mode_", "_token"
    return [
        key.removeprefix(prefix).partition(suffix)[0]
        for key, value in config.items()
        if key.startswith(prefix) and value is True
    ]
