"""The commands that show: serve and report. Arguments and printing only."""

from __future__ import annotations

import argparse
import ipaddress
import secrets
from collections.abc import Callable
from pathlib import Path

from apportion.compressors.errors import ConfigurationError


def add_commands(
    command: Callable[..., argparse.ArgumentParser],
    store_url: Callable[[argparse.Namespace], str | None],
) -> None:
    """`store_url` is the run store that options name, or None where there is none."""
    serve = command(
        "serve",
        lambda options: _serve(options, store_url(options)),
        "Serve the web page of all jobs: convergence, league, chosen levels, live.",
        "apportion serve --port 8080",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1; another needs the token)",
    )
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that a reverse proxy passes on as the page's; may be given several times",
    )
    serve.add_argument(
        "--storage",
        help="the service's storage, a folder or URL; default: that of this machine's own jobs",
    )
    report = command(
        "report",
        lambda options: _report(options, store_url(options)),
        "Write the page of one job as a single HTML file.",
        "apportion report 1a2b3c4d -o report.html",
    )
    report.add_argument(
        "job", metavar="JOB", help="a job's id, as `apportion runs` lists it, or a run's"
    )
    report.add_argument("-o", "--out", type=Path, required=True, help="HTML file to write")
    for sub in (serve, report):
        sub.add_argument(
            "--store", help="URL of the run store; default: APPORTION_STORE, or ./apportion.sqlite"
        )


def _serve(options: argparse.Namespace, store: str | None) -> None:
    from apportion.search.service import local

    try:
        import uvicorn

        from apportion.search.web.guard import LOOPBACK
        from apportion.search.web.jobs import Jobs
        from apportion.search.web.server import make_app
    except ImportError as error:
        raise ConfigurationError(
            f"the web page needs the package {error.name}: install apportion[web]"
        ) from error
    token = None if _is_loopback(options.host) else secrets.token_urlsafe(24)
    names = [*LOOPBACK, options.host] if token is None else []  # with a token any name will do
    hosts = [*names, *options.allow_host]
    app = make_app(Jobs(store, options.storage or local.home()), token, hosts)
    print(
        f"http://{options.host}:{options.port}/" + (f"?token={token}" if token else ""), flush=True
    )
    uvicorn.run(
        app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=1
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _report(options: argparse.Namespace, store: str | None) -> None:
    from apportion.db.runs.store import RunStore
    from apportion.search.service import local
    from apportion.search.service.folder import JobFolder
    from apportion.search.web.report import write_report

    job, url = options.job, store
    if (
        (state := JobFolder(local.home(), job).read_state()) is not None
        and state.store
        and state.search
    ):
        job, url = state.search, state.store  # a submitted job
    if url is None:
        raise ConfigurationError("there is no run store here; name it with --store")
    opened = RunStore(url, reading=True)
    if job not in opened.jobs():
        job = opened.run(job).job
    write_report(opened, job, options.out)
    print(f"wrote {options.out}")
