"""What a storage says of its jobs. The service sends this file's text to the head, where it runs by
itself (no other module of apportion is there), for jobs that Ray has forgotten: one line a job,
MARK and its state as JSON."""

from __future__ import annotations

import glob
import json
import os
import sys

MARK = "apportion-stored "


def states(storage: str, job: str) -> list[object]:
    """Of one job, or with `*` of all: what their state files hold, as far as it is JSON."""
    found: list[object] = []
    root = glob.escape(os.path.expanduser(storage))
    for path in sorted(glob.glob(os.path.join(root, "jobs", job, "state.json"))):
        try:
            with open(path, encoding="utf-8") as file:
                found.append(json.load(file))
        except (OSError, ValueError):
            continue
    return found


if __name__ == "__main__":
    for content in states(sys.argv[1], sys.argv[2]):
        print(MARK + json.dumps(content))
