"""Commands that work on a job: build; and the job file's schema."""

from __future__ import annotations

import argparse
import json
from typing import Any

from apportion.search.cli.printing import show
from apportion.search.cli.progress import TerminalProgress


def build_command(options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.building import build

    job = load_model_job(options.job)
    with TerminalProgress() as progress:
        _, database = build(job, progress)
    entries = [entry for record in database.layers.values() for entry in record.entries]
    content: dict[str, Any] = {
        "path": str(database.path),
        "fingerprint": database.fingerprint,
        "layers": len(database.layers),
        "entries": len(entries),
        "bytes": sum(entry.bits for entry in entries) // 8,
        "tied": {
            name: list(record.aliases) for name, record in database.layers.items() if record.aliases
        },
    }

    def text() -> None:
        size = f"{content['bytes'] / 2**20:.1f} MiB"
        print(
            f"{content['path']}: {content['layers']} layers, {content['entries']} entries, {size}"
        )
        for name, others in content["tied"].items():
            print(f"tied weights, one entry for all: {', '.join([name, *others])}")

    show(options, content, text)


def schema_command(_options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import json_schema

    print(json.dumps(json_schema(), indent=1))
