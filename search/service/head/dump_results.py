"""Print a job's results, packed, for the one who fetches them: python -m
apportion.search.service.head.dump_results --storage FOLDER --job ID"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tarfile
from pathlib import Path

from apportion.search.service.folder import JobFolder

BEGIN, END = "@begin", "@end"
_LIMIT = 512 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--job", required=True)
    options = parser.parse_args()
    results = JobFolder(options.storage.expanduser(), options.job).results
    size = sum(path.stat().st_size for path in results.rglob("*") if path.is_file())
    if size > _LIMIT:
        print(
            f"they are {size / 2**20:.0f} MiB, too many for a log; copy {results} from the head "
            "node (ray rsync-down)"
        )
        return 1
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(results.rglob("*")):
            archive.add(path, arcname=str(path.relative_to(results)), recursive=False)
    print(BEGIN)
    print(base64.encodebytes(packed.getvalue()).decode(), end="")
    print(END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
