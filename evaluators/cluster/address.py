"""Addresses of Ray, read by one reader for all commands: a cluster itself, HOST:6379, for what runs
on one of its machines, and its dashboard, http://HEAD:8265, where jobs are submitted to."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
import urllib.request

from apportion.compressors.errors import ConfigurationError

_DASHBOARD = "http://HEAD:8265"
_LOCAL = ("localhost", "127.0.0.1", "::1")


def dashboard_address(given: str | None) -> str | None:
    """The dashboard that `given`, RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, in this order; None
    where nothing is said: this machine. Raises ConfigurationError."""
    for source, text in (
        ("--address", given),
        ("RAY_API_SERVER_ADDRESS", os.environ.get("RAY_API_SERVER_ADDRESS")),
        ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS")),
    ):
        if text and text.strip():
            return _dashboard(source, text.strip())
    return None


def cluster_address() -> str | None:
    """What RAY_ADDRESS says to a command that works on the cluster itself; None where it says
    nothing. Raises ConfigurationError."""
    text = os.environ.get("RAY_ADDRESS", "").strip()
    if not text or text == "local":
        return None
    if text == "auto":
        return text
    if "://" in text:
        raise ConfigurationError(
            f"RAY_ADDRESS is {text}: this command works on a machine of the cluster itself, with "
            "HOST:6379 or auto; from elsewhere, `apportion submit` sends jobs to a dashboard"
        )
    _port("RAY_ADDRESS", text, f"//{text}", "HOST:6379")
    return text


def spare_loopback() -> None:
    """Let no proxy stand between this process and its own machine."""
    for name in ("no_proxy", "NO_PROXY"):
        there = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join([*there, *(host for host in _LOCAL if host not in there)])


def proxy_of(address: str) -> str | None:
    """The proxy that requests to an address go through."""
    parsed = urllib.parse.urlsplit(address)
    if is_loopback(address) or urllib.request.proxy_bypass(parsed.hostname or ""):
        return None
    return urllib.request.getproxies().get(parsed.scheme)


def is_loopback(address: str | None) -> bool:
    host = urllib.parse.urlsplit(address or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _dashboard(source: str, text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{source} is {text}; jobs are submitted to a cluster's dashboard, {_DASHBOARD}"
        )
    _port(source, text, text, _DASHBOARD)
    return text


def _port(source: str, text: str, url: str, valid: str) -> None:
    try:
        parsed = urllib.parse.urlsplit(url)
        port_there = parsed.port is not None or url.startswith("http")
    except ValueError as error:
        raise ConfigurationError(f"{source} is {text}: {error}; it is written {valid}") from error
    if not parsed.hostname or not port_there:
        raise ConfigurationError(f"{source} is {text}; it is written {valid}")
