"""What is built and installed: one import name, that nobody else's packages or folders are in the
way of."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("compressors", "db", "evaluators", "search")
JOB = """
workload: {data: {kind: digits}, calibration_samples: 64, batch_size: 64}
database: {path: database, levels: [dense, "mag:unstr-0.50"]}
budgets: {flops: 0.8}
batchnorm: running
search: {algorithms: [random], evaluations: 4, seeds: [0]}
workers: {count: 0, cpus: 1}
"""


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel of this checkout, made from a copy: a build leaves folders behind."""
    pytest.importorskip("build", reason="the package build is not installed")
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    for name in run("git", "ls-files", folder=ROOT).splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    run(*command, "--sdist", folder=out)
    run(*command, "--wheel", folder=out)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def modules(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if name.startswith("apportion/") and not name.endswith("/")
        }


def make_wheel(name: str, folder: Path) -> Path:
    """A package `name` with a top-level module of that name, as the package index has them."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def test_the_wheel_has_one_top_level_name_and_all_that_is_tracked(built: tuple[Path, Path]) -> None:
    held = modules(built[1])
    with zipfile.ZipFile(built[1]) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"apportion"}
    tracked = run("git", "ls-files", *ROOMS, folder=ROOT).split()
    assert {f"apportion/{name}" for name in tracked} <= held.keys()
    assert "apportion/py.typed" in held


def test_the_sdist_builds_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "out"),
        source,
        folder=tmp_path,
    )
    assert modules(next((tmp_path / "out").glob("*.whl"))) == modules(built[1])


def test_it_works_beside_packages_and_folders_of_the_same_names(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, folder=tmp_path)
    python = environment / "bin" / "python"
    site = Path(
        run(
            *(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"),
            folder=tmp_path,
        ).strip()
    )
    # The dependencies are those of this environment; its .pth files, and so this checkout, are not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    others = [make_wheel(name, tmp_path) for name in ROOMS]
    install = (python, "-m", "pip", "install", "--quiet", "--no-deps")
    run(*install, built[1], *others, folder=tmp_path)
    user = tmp_path / "user"
    for name in ROOMS:
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise ImportError('not apportion')\n")
    (user / "job.yaml").write_text(JOB)
    (user / "script.py").write_text(
        "from pathlib import Path\n"
        "import apportion\n"
        "from apportion.search.cli.main import main\n"
        f"assert not Path(apportion.__file__).is_relative_to({str(ROOT)!r})\n"
        "raise SystemExit(main(['search', 'job.yaml']))\n"
    )
    version = run(environment / "bin" / "apportion", "--version", folder=user)
    assert version.strip().split(".")[0].isdigit()
    assert "random" in run(python, "script.py", folder=user)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *ROOMS, folder=user)
    (user / "job.yaml").write_text(JOB.replace("random", "dp"))
    assert "dp" in run(python, "-m", "apportion", "search", "job.yaml", folder=user)
