"""The model card: what a reader of an exported model should know, in Markdown with the front matter
that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from apportion.evaluators.scoring.fitness import MEANINGS
from apportion.evaluators.tasks.task import Metric
from apportion.search.export.kernels import AS_OF


def model_card(content: Mapping[str, Any], model: str) -> str:
    """`content`: that of profile.json; `model`: the dense model's name."""
    front = {
        "base_model": model,
        "tags": ["compressed", "apportion"],
        "license": "unknown",
        "license_note": "that of the dense model and of its training data holds; fill it in before "
        "you publish this",
    }
    origin, fitness = content["provenance"], content["fitness"]
    budgets = [
        (
            metric,
            f"{ratio:.4f}",
            f"{content['budgets'][metric]:.4f}" if metric in content["budgets"] else "-",
        )
        for metric, ratio in content["costs"].items()
    ]
    metric = Metric(**content["metric"])
    values = [(what, metric.number(value)) for what, value in content[metric.name].items()]
    files = [
        (
            name,
            f"{one['bytes']:,}",
            f"{one['of_dense']:.3f}",
            f"{one['largest_difference']:.2g}",
            metric.number(one[metric.name]),
        )
        for name, one in content["exports"].items()
    ]
    processors = " and ".join(sorted({one["processor"] for one in content["exports"].values()}))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {model}, compressed",
        "Each layer has a level of its own, chosen by a search under budgets for the whole model.",
        f"Fitness `{fitness['name']}`, {MEANINGS[fitness['name']]}: "
        f"{fitness['value']:.5g} on calibration data (lower is better).",
        "## Costs, as fractions of the dense model",
        _table(("metric", "reached", "budget"), budgets),
        f"## Test {metric.title}",
        _table(("model", metric.title), values),
        *(
            [
                "## Files\nEach was loaded again, and run on calibration and on test data "
                f"(processor: {processors}).",
                *_notes(content["exports"]),
                _table(
                    (
                        "file",
                        "bytes",
                        "of the dense weights",
                        "largest difference",
                        f"test {metric.title}",
                    ),
                    files,
                ),
            ]
            if files
            else []
        ),
        *_runtimes(content["exports"]),
        "## Levels",
        _table(("layer", "level"), list(content["profile"].items())),
        "## Where it comes from",
        _table(("what", ""), [(key, value) for key, value in origin.items() if key != "versions"]),
        "Made with "
        + ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _notes(exports: Mapping[str, Any]) -> list[str]:
    """What who runs a file must know, if there is anything."""
    lines = [f"- {name}: {note}" for name, one in exports.items() for note in one.get("notes", ())]
    return ["\n".join(lines)] if lines else []


def _runtimes(exports: Mapping[str, Any]) -> list[str]:
    """What runs which level of a file, where its format knows."""
    parts = []
    for name, one in exports.items():
        if rows := one.get("kernels"):
            heads = tuple(rows[0])
            parts.append(f"## What runs {name}\nFrom the runtimes' own sources: {AS_OF}")
            parts.append(_table(heads, [tuple(row[head] for head in heads) for row in rows]))
    return parts


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines
    )
