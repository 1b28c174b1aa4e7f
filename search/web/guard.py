"""Who may ask the page's server, and what browsers may do with its answers."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_COOKIE = "apportion_token"


def add_guard(app: FastAPI, script: str, token: str | None, hosts: Sequence[str]) -> None:
    """Let in who asks for one of `hosts` (a page elsewhere, whose name was made to lead here, asks
    for its own) and, with a `token`, has it: as `Authorization: Bearer`, or once as ?token=, then
    a cookie. Without `hosts` any will do. `script`: the page's own, the only one that may run."""
    headers = _headers(script)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        given = request.query_params.get("token")
        response: Response
        if hosts and _name(request.headers.get("host", "")) not in hosts:
            allowed = ", ".join(hosts)
            response = JSONResponse({"detail": f"this server is {allowed} (--allow-host)"}, 421)
        elif token is not None and not _has(request, given, token):
            response = JSONResponse(
                {"detail": "a token is needed: ?token=... or Authorization: Bearer"}, 401
            )
        else:
            response = await call_next(request)
            if token is not None and given:
                response.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        response.headers.update(headers)
        return response


def _headers(script: str) -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def _name(host: str) -> str:
    """Without the port: a tunnel may have another."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower().rstrip(".")


def _has(request: Request, given: str | None, token: str) -> bool:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    offered = (given, bearer, request.cookies.get(_COOKIE))
    return any(one and secrets.compare_digest(one.encode(), token.encode()) for one in offered)
