"""Reaching the server: proxies, and the sentences for what another attempt will not change."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.download.catalogue import INDEX_PAGE


def check_base_url(url: str) -> str:
    """The base URL without a closing slash.

    Raises:
        UserError: Not http or https, no host, or with a password, which would end up in the lock.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and url.isascii()
    except ValueError:
        good = False
    if not good or any(character.isspace() for character in url) or parts.query or parts.fragment:
        raise UserError(f"--base-url takes an http or https address, not '{url}'.")
    if parts.username is not None:
        raise UserError(
            "--base-url must hold no user name or password; let a proxy or a mirror log in."
        )
    return url.rstrip("/")


def opener() -> urllib.request.OpenerDirector:
    """An opener for http and https with the proxies of the environment.

    Raises:
        UserError: A proxy of a kind that the standard library cannot use.
    """
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        # urllib knows all_proxy but never uses it; curl and wget users expect it to count.
        proxy = proxies.get(scheme) or proxies.get("all")
        if proxy and "://" in proxy and not proxy.startswith(("http://", "https://")):
            raise UserError(
                f"The proxy of {scheme}_proxy is a {proxy.partition(':')[0]} proxy; "
                "set it to an HTTP proxy, or use a mirror with --base-url."
            )
        if proxy:
            proxies[scheme] = proxy
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPRedirectHandler(),
    ):
        director.add_handler(handler)
    return director


def refusal(url: str, code: int, reason: str) -> UserError:
    """The sentence for an answer that another attempt will not change."""
    advice = {
        401: "the server asks for a login; check --base-url",
        403: "the server forbids it; check the address in a browser, or use --base-url",
        404: f"the server has no such file; see {INDEX_PAGE} for its new place, "
        "and give that with --base-url",
        407: "the proxy asks for a login; put user and password into https_proxy",
        410: f"the file was removed; see {INDEX_PAGE} for its new place",
    }.get(code, "check the address in a browser, or use a mirror with --base-url")
    return UserError(f"{url} cannot be downloaded (HTTP {code} {reason}): {advice}.")


def unreachable(url: str, problem: object) -> UserError | None:
    """The sentence for a connection that will not come about; None if it may."""
    host = urllib.request.Request(url).host
    known: dict[type, str] = {
        socket.gaierror: f"the host {host} cannot be found; check the network connection, set "
        "https_proxy if you are behind a proxy, or use a mirror with --base-url",
        ConnectionRefusedError: f"the host {host} or the proxy refuses the connection; check "
        "https_proxy, or use a mirror with --base-url",
        ssl.SSLCertVerificationError: f"the certificate of {host} is not trusted; set "
        "SSL_CERT_FILE to your organisation's certificates",
        http.client.InvalidURL: "the address is not valid; check --base-url",
    }
    what = known.get(type(problem))
    return UserError(f"{url} cannot be downloaded: {what}.") if what else None
