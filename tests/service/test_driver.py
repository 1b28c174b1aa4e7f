"""The process of a submitted job, below Ray."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from apportion.search.service.package import _PROJECT, _copy_module

CODE = """
import shutil, sys
from pathlib import Path
from apportion.search.service.head import driver
kept = Path(sys.argv[1])
assert "apportion.search.runs.pipeline" not in sys.modules
driver._import_from(kept)
shutil.rmtree(Path.cwd() / "apportion")
from apportion.search.runs import pipeline
assert Path(pipeline.__file__).is_relative_to(kept), pipeline.__file__
"""


def test_the_job_goes_on_when_ray_removes_the_folder_that_it_was_started_in(tmp_path: Path) -> None:
    working, kept = tmp_path / "working", tmp_path / "kept"
    working.mkdir()
    _copy_module(_PROJECT, working)
    shutil.copytree(working, kept)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(kept)],
        cwd=working,
        env={**os.environ, "PYTHONPATH": str(working)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
