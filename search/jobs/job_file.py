"""Reading job files: YAML or JSON, paths relative to the file, errors that name the field and what
would be valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from apportion.compressors.errors import DocumentError, JobError, UnknownNameError
from apportion.compressors.folders import expanded
from apportion.db.documents.text import read_text
from apportion.db.documents.yaml_reader import MOST, yaml_content
from apportion.db.runs.sqlite import sqlite_url
from apportion.evaluators.costs.latency import is_function
from apportion.evaluators.data.files import is_url
from apportion.evaluators.data.text.pretrained import PREFIX, is_path
from apportion.evaluators.models import onnx_source
from apportion.search.jobs.job import AnyJob, Job, TableJob

_MODEL = ("workload", "model")
_PATHS = (
    _MODEL,
    ("workload", "weights"),
    ("workload", "shapes"),
    ("workload", "data", "calibration"),
    ("workload", "data", "test"),
    ("workload", "data", "train"),
    ("workload", "data", "root"),
    ("workload", "data", "images"),
    ("workload", "data", "tokenizer"),
    ("workload", "table"),
    ("workload", "error"),
    ("database", "path"),
    ("latency", "table"),
    ("recovery", "rewind"),
)
_TEXTS = (("layers", "skip", "*"), ("layers", "tie", "*", "*"))
"""Where layers are named, which may be called 0 or 1.10."""
_SHOWN = 200
"""Characters of a wrong value that a message repeats."""


def load_job(path: str | Path) -> AnyJob:
    """Read a job file of either kind. Raises JobError."""
    return parse_job(read_content(path), path)


def read_content(path: str | Path) -> Any:
    """What a job file says, not checked yet. Raises JobError."""
    path = Path(path)
    try:
        return yaml_content(read_text(path, MOST), _TEXTS)
    except DocumentError as error:
        raise JobError(path, "", str(error)) from error


def restore_job(spec: dict[str, Any]) -> AnyJob:
    """A job as the run store keeps it. Raises JobError for one that this version does not know."""
    kind = _kind(spec)
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        raise explain(
            kind, Path("the job in the run store (altered, or a newer version wrote it)"), error
        ) from error


def _kind(content: object) -> type[Job] | type[TableJob]:
    workload = content.get("workload") if isinstance(content, dict) else None
    return TableJob if isinstance(workload, dict) and "table" in workload else Job


def load_model_job(path: str | Path) -> Job:
    """`load_job` for what needs a model. Raises JobError, also for a job on a table."""
    return _with_model(load_job(path), path)


def parse_job(content: object, path: str | Path = "job") -> AnyJob:
    """Check a job that was read already; `path` is the file it stands for, whose folder its paths
    are relative to. Raises JobError, which names the field."""
    path, kind = Path(path), _kind(content)
    if not isinstance(content, dict):
        raise JobError(path, "", "a job is a mapping with the keys " + ", ".join(kind.model_fields))
    folder = path.absolute().parent
    content = resolve_paths(content, folder)
    content.setdefault("store", sqlite_url(folder / "apportion.sqlite"))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise explain(kind, path, error) from _cause(error)


def parse_model_job(content: object, path: str | Path = "job") -> Job:
    """`parse_job` for what needs a model. Raises JobError, also for a job on a table."""
    return _with_model(parse_job(content, path), path)


def _with_model(job: AnyJob, path: str | Path) -> Job:
    if not isinstance(job, Job):
        raise JobError(path, "workload", "a model is needed here, and this job searches on a table")
    return job


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the job file, for editors that complete it: a job with a model, or one on
    a table."""
    kinds = [kind.model_json_schema() for kind in (Job, TableJob)]
    shared = {name: definition for kind in kinds for name, definition in kind.pop("$defs").items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Job",
        "anyOf": kinds,
        "$defs": shared,
    }


def resolve_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a job's content with its paths made absolute, relative ones in `folder`."""
    return map_paths(content, lambda _, value: str(folder / expanded(value)))


def map_paths(
    content: dict[str, Any], change: Callable[[tuple[str, ...], str], str]
) -> dict[str, Any]:
    """A copy of a job's content with `change(keys, path)` in place of every path that it names."""
    content = json.loads(json.dumps(content, default=str))
    for keys in _PATHS:
        parent: Any = content
        for key in keys[:-1]:
            parent = parent.get(key) if isinstance(parent, dict) else None
        value = parent.get(keys[-1]) if isinstance(parent, dict) else None
        if isinstance(value, str) and not _is_a_name(keys, value):
            parent[keys[-1]] = _changed(keys, value, change)
    return content


def _changed(
    keys: tuple[str, ...], text: str, change: Callable[[tuple[str, ...], str], str]
) -> str:
    if keys[-1] not in ("model", "tokenizer"):
        return change(keys, text)
    if keys == _MODEL and onnx_source.is_onnx(text):
        before = onnx_source.PREFIX if text.startswith(onnx_source.PREFIX) else ""
        return before + change(keys, text.removeprefix(before))
    path = change(keys, text.removeprefix(PREFIX))
    prefix = PREFIX if keys[-1] == "model" else ""
    return f"{prefix}{path if is_path(path) else f'./{path}'}"


def _is_a_name(keys: tuple[str, ...], text: str) -> bool:
    """torchvision's weight enums (IMAGENET1K_V2, DEFAULT) and error priors are names; files have a
    suffix or a folder. A latency table may be a function. Models are names, but for ONNX files and
    the folders of Hugging Face's (huggingface:./mine), and so are tokenizers (./mine). URLs stay as
    they are."""
    if keys == _MODEL and onnx_source.is_onnx(text):
        return is_url(onnx_source.file_of(text))
    if keys == _MODEL:
        return not (text.startswith(PREFIX) and is_path(text.removeprefix(PREFIX)))
    if keys[-1] == "tokenizer":
        return not is_path(text)
    if is_url(text) or (keys == ("latency", "table") and is_function(text)):
        return True
    return keys[-1] in ("weights", "error") and "/" not in text and not Path(text).suffix


def explain(kind: type[BaseModel], path: Path, error: ValidationError) -> JobError:
    """Pydantic's error as ours, which names the field and what would be valid."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        valid = _valid_keys(kind, first["loc"][:-1])
        return JobError(path, field, str(UnknownNameError("key", key, valid)))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "required key is missing"
    return JobError(path, field, message + _given(first))


def _given(problem: Any) -> str:
    """What stood there, where that is short and cannot hold the store's password."""
    if problem["type"] == "missing" or "store" in problem["loc"]:
        return ""
    shown = repr(problem["input"])
    if isinstance(problem["input"], dict) or len(shown) > _SHOWN:
        return ""
    return f" (got {shown})"


def _cause(error: ValidationError) -> BaseException:
    """What a check of ours raised, whose traceback leads into the code that a job names; pydantic's
    own error where there is none."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return cause if isinstance(cause, BaseException) else error


def _valid_keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the job file's schema allows at `location`."""
    schema = kind.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _deref(schema, node)
        options = [
            node,
            *(_deref(schema, option) for option in node.get("anyOf", []) + node.get("oneOf", [])),
        ]
        following = [o["properties"][part] for o in options if part in o.get("properties", {})]
        tagged = [o for o in options if part in _kinds(o)]
        node = (following or tagged or [node])[0]
    return sorted(_deref(schema, node).get("properties", {}))


def _kinds(node: dict[str, Any]) -> list[Any]:
    """What `kind` may be at this place."""
    kind = node.get("properties", {}).get("kind", {})
    return [kind.get("const"), *kind.get("enum", [])]


def _deref(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
