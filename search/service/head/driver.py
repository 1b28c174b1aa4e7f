"""A submitted job's own process:

    python -m apportion.search.service.head.driver --storage FOLDER --job ID [--formats ...]

Waits for its share of the cluster, builds, searches, exports the best profile, and keeps the job's
state.json true meanwhile. Run again for the same job, it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ApportionError, ConfigurationError, DatabaseBusyError
from apportion.compressors.user_code import ALLOW, close_gate, is_refused
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.url import masked
from apportion.evaluators.cluster.connection import import_ray, start_ray
from apportion.evaluators.cluster.room import cluster_room
from apportion.evaluators.cluster.scheduler import PRIORITY, Quota
from apportion.search.service import local
from apportion.search.service.archive import FILES, check, unpack
from apportion.search.service.folder import JobFolder, JobState
from apportion.search.service.head.reporter import Reporter
from apportion.search.service.mirror import Mirror, check_storage
from apportion.search.service.package import JOB, check_database, code_names


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", required=True, help="folder, absolute or ~/..., or URL")
    parser.add_argument("--job", required=True)
    parser.add_argument("--file", default="", help="name of the job file, as the user knows it")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=["safetensors"])
    parser.add_argument(
        "--local",
        action="store_true",
        help="the user's own machine: code and paths of the job are trusted",
    )
    options = parser.parse_args()
    try:
        mirror = Mirror(check_storage(options.storage))
    except ConfigurationError as error:
        parser.error(str(error))
    folder = JobFolder(mirror.folder, options.job)
    before = folder.read_state()
    priority = float(os.environ.get(PRIORITY, "1"))
    state = JobState(
        options.job,
        options.file,
        attempt=options.attempt,
        priority=priority,
        formats=options.formats,
    )
    if before is not None:
        state.submitted, state.file = before.submitted, before.file
    reporter = Reporter(folder, state, mirror)
    signal.signal(signal.SIGTERM, partial(_interrupt, reporter))
    reporter.start()
    try:
        _run(folder, options, reporter, mirror)
        return _finish(reporter, "finished", None)
    except KeyboardInterrupt:
        return _finish(reporter, "cancelled", None)
    except ApportionError as error:
        return _finish(reporter, "failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return _finish(reporter, "failed", f"{type(error).__name__}: {error}")


def _interrupt(reporter: Reporter, *_: object) -> None:
    # Once is enough: what follows must come to its end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reporter.cancel()
    raise KeyboardInterrupt


def _finish(reporter: Reporter, state: str, error: str | None) -> int:
    reporter.state.ended, reporter.state.error, reporter.state.left = time.time(), error, None
    try:
        reporter.enter(state)
    except ApportionError as trouble:  # the store or the disk is what failed
        print(f"apportion: {trouble}", file=sys.stderr)
    if error:
        print(f"apportion: {error}", file=sys.stderr)
    return 0 if state == "finished" else 1


def _run(
    folder: JobFolder, options: argparse.Namespace, reporter: Reporter, mirror: Mirror
) -> None:
    mirror.pull(f"jobs/{folder.job}/package", JOB)
    reporter.enter("queued")
    _keep_package(folder)
    check(folder.package)
    mirror.push(f"jobs/{folder.job}/package")
    os.chdir(folder.package)  # Ray may remove the folder that it started us in
    _import_from(folder.package)
    content = json.loads((folder.package / JOB).read_text())
    if not options.local:
        close_gate()
    if is_refused() and (named := code_names(content)):  # said before the job waits for its share
        raise ConfigurationError(
            f"the job names code of its own ({', '.join(named)}); the operator allows that with "
            f"{ALLOW}=1"
        )
    sys.path.insert(0, str(folder.package))
    ray = import_ray()
    if options.local and (cluster := local.running("cluster")):
        os.environ["RAY_ADDRESS"] = cluster
    start_ray(ray, address="auto", runtime_env=_environment(folder))
    share = _wait_for_share(ray, content, reporter)
    reporter.state.started = time.time()
    try:
        _work(folder, content, options, reporter, mirror)
    finally:
        share.leave()


def _environment(folder: JobFolder) -> dict[str, Any] | None:
    """Workers get the package's code, where it holds some and Ray has not brought it already."""
    if (folder.package / "apportion").is_dir() and "working_dir" not in os.environ.get(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", ""
    ):
        return {"working_dir": str(folder.package), "excludes": [f"/{FILES}/"]}
    return None


def _import_from(package: Path) -> None:
    """What the project has not imported yet comes from the kept package, where it lies in it."""
    for name, module in list(sys.modules.items()):
        kept = package / name.replace(".", "/")
        if name.partition(".")[0] == "apportion" and hasattr(module, "__path__") and kept.is_dir():
            module.__path__ = [str(kept)]


def _keep_package(folder: JobFolder) -> None:
    """What was submitted, out of the working folder that Ray removes one day, for a later
    resume."""
    if folder.package.exists():
        return
    coming = folder.path / "package.coming"
    shutil.rmtree(coming, ignore_errors=True)
    shutil.copytree(Path.cwd(), coming)
    unpack(coming)
    coming.rename(folder.package)


def _wait_for_share(ray: Any, content: dict[str, Any], reporter: Reporter) -> Quota:
    """Raises ConfigurationError where there will never be room for the job."""
    from apportion.search.jobs.sections import WorkersConfig

    workers = WorkersConfig.model_validate(content.get("workers") or {})
    cluster_room(ray).check(max(1, workers.at_least or workers.count), workers.each)
    share = Quota(ray, max(1, workers.count), workers.each)
    while share.count() < 1:
        reporter("wait for a share of the cluster", 0, 1)
        time.sleep(1.0)
    return share


def _work(
    folder: JobFolder,
    content: dict[str, Any],
    options: argparse.Namespace,
    reporter: Reporter,
    mirror: Mirror,
) -> None:
    from apportion.db.layers.format import MANIFEST
    from apportion.db.runs.store import Run, RunStore
    from apportion.search.export.exporting import check_formats, check_job
    from apportion.search.jobs.job import Job
    from apportion.search.runs.front import prepare_points, run_points
    from apportion.search.runs.pipeline import ModelProblem, job_runs
    from apportion.search.schedules import record
    from apportion.search.schedules.prune import prune
    from apportion.search.service.head.results import write_results

    job = _placed(folder, content, options.local)
    assert job.store is not None
    reporter.state.store = masked(job.store)
    store = RunStore(job.store)
    if isinstance(job, Job) and job.schedule is not None and job.schedule.kind != "one-shot":
        place, out = f"jobs/{folder.job}/results", folder.results / "best"
        mirror.pull(place, f"best/{record.FILE}")
        reporter.enter("searching")
        try:
            _patiently(lambda: prune(job, out, reporter, options.formats), reporter)
        finally:  # finished steps outlive this head
            mirror.push(place)
        return
    if isinstance(job, Job):
        check_job(options.formats, job)
    reporter.enter("building")
    database = f"databases/{job.database.path.name}" if isinstance(job, Job) else None
    if database is not None:
        mirror.pull(database, MANIFEST)
    points = _patiently(lambda: prepare_points(job, reporter), reporter)
    with points[0] as problem:  # all of them share its workers
        reporter.state.search = problem.id
        if isinstance(problem, ModelProblem):
            check_formats(options.formats, problem)
        own = {run.id: run.evaluations for point in points for run in job_runs(point)}

        def known() -> list[Run]:
            return [run for point in points for run in store.runs(point.id) if run.id in own]

        started, before = time.monotonic(), sum(run.asked for run in known())

        def look() -> None:
            runs = known()
            reporter.state.runs = [run.describe() for run in runs]
            best = min(((run.best, run.id) for run in runs if run.best is not None), default=None)
            reporter.state.best = (
                {"run": best[1], "fitness": best[0]} if best and math.isfinite(best[0]) else None
            )
            reporter.state.workers = {
                "there": problem.worker_count,
                "replaced": dict(problem.replaced),
            }
            asked = sum(run.asked for run in runs)
            if asked > before and reporter.state.state == "searching":
                reporter.state.rate = (asked - before) / (time.monotonic() - started)
                reporter.state.left = max(0.0, sum(own.values()) - asked) / reporter.state.rate

        if database is not None:
            mirror.push(database)
        reporter.look = look
        reporter.enter("searching")
        found = run_points(points, store, reporter)
        reporter.enter("exporting")
        write_results(folder.results, points, found, reporter, options.formats)
        mirror.push(f"jobs/{folder.job}/results")


def _placed(folder: JobFolder, content: dict[str, Any], local: bool) -> Any:
    """The job with the places that the storage gives it. Raises ConfigurationError for a database
    outside of it, except for a `local` job."""
    from apportion.search.jobs.job_file import parse_job

    storage = folder.path.parent.parent
    database, workers = content.get("database"), dict(content.get("workers") or {})
    if database is not None:
        workers["count"] = max(1, workers.get("count", 0))
        path = Path(os.path.normpath(storage / "databases" / database["path"]))
        if not local:
            check_database(database["path"], str(storage))
        content = content | {"workers": workers, "database": database | {"path": str(path)}}
    content.setdefault("store", sqlite_url(storage / "runs.sqlite"))
    return parse_job(content, folder.package / JOB)


def _patiently(work: Callable[[], Any], reporter: Reporter) -> Any:
    """Another job may be building the same database: wait for it."""
    while True:
        try:
            return work()
        except DatabaseBusyError:
            pass
        reporter("wait for another job that builds the database", 0, 1)
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
