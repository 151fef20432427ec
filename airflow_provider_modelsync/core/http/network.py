"""How a connection reaches its server: certificates, proxy, and the httpx clients made with them.

httpx, urllib3, botocore and WebSocket clients read different environment variables, or none. Here each question
has one answer for all: the connection's own fields win, then the standard variables count; ``.netrc`` never does.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import httpx

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.forks import generation
from airflow_provider_modelsync.core.http.addresses import Reach, has_proper_host, origin_of
from airflow_provider_modelsync.core.redact import guard_logs, secrets_of
from airflow_provider_modelsync.core.settings import RegistrySettings

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0

_TIMEOUT = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
_LIMITS = httpx.Limits(max_connections=20, max_keepalive_connections=10, keepalive_expiry=30.0)
_MOST_PEM = 16 << 20  # bytes; a whole system's CAs have some 200 KiB
_WEB_SCHEMES = {"ws": "http", "wss": "https"}
# What httpx is given for plain HTTP. Made once and early: in a child that was forked beside other threads, OpenSSL may
# wait for ever for a lock that one of them held.
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_Stamp = tuple[str, int]


def ssl_context(settings: RegistrySettings) -> ssl.SSLContext:
    """Return the TLS context of a connection, shared by all that name the same files.

    Building one takes 20 ms and almost 1 MB, so there is one per process and set of files. A file that was replaced
    makes a new one.

    :raises InvalidInput: naming the field or variable whose file is missing or of no use.
    """
    return _context(settings.verify_tls, *_tls_files(settings))


def context_for(url: str, proxy: str | None, settings: RegistrySettings) -> ssl.SSLContext | None:
    """Return the TLS context of a connection, or ``None`` for plain HTTP: the system's certificates take 50 ms.

    Files that a connection names are read all the same, so that one of no use is told at once.

    :param url: where a request goes.
    :param proxy: the proxy it takes.
    :param settings: the connection. Errors as of :func:`ssl_context`.
    """
    is_plain = all(one is None or one.startswith(("http:", "ws:")) for one in (url, proxy))
    if is_plain and not (settings.ca_bundle or settings.client_cert or settings.client_key):
        _tls_files(settings)
        return None
    return ssl_context(settings)


def _tls_files(settings: RegistrySettings) -> tuple[_Stamp | None, Path | None, _Stamp | None, _Stamp | None]:
    verified = settings.verify_tls
    return (
        _stamp(ca_file(settings), "ca_bundle") if verified else None,
        None if settings.ca_bundle or not verified else _path_in("SSL_CERT_DIR", Path.is_dir),
        _stamp(settings.client_cert, "client_cert"),
        _stamp(settings.client_key, "client_key"),
    )


def ca_file(settings: RegistrySettings) -> Path | None:
    """Return the file of CA certificates to trust, or ``None`` for the system's.

    :raises InvalidInput: when one of the variables that count names no file.
    """
    found = (_path_in(variable, Path.is_file) for variable in settings.ca_variables)
    return settings.ca_bundle or next((path for path in found if path), None)


def proxy_for(url: str, settings: RegistrySettings) -> str | None:
    """Return the proxy to use for a URL, or ``None``.

    The connection's own wins. Else ``HTTPS_PROXY`` or ``HTTP_PROXY``, then ``ALL_PROXY`` count, in either case of
    letters, unless ``NO_PROXY`` lists the host: names (also without their first labels), addresses, ranges, ``*``, each
    with or without a port.

    :param url: an http, https, ws or wss URL.
    :param settings: the connection.
    :return: the proxy's URL. It may hold a password.
    :raises InvalidInput: naming the field or variable that cannot be used.
    """
    if settings.proxy and settings.proxy.get_secret_value():
        return _proxy_url(settings.proxy.get_secret_value(), "proxy")
    scheme, host, port = origin_of(url)
    scheme = _WEB_SCHEMES.get(scheme, scheme)
    # A CGI server turns a client's "Proxy" header into HTTP_PROXY.
    names = [
        name for name in _variables(f"{scheme}_proxy") if name != "HTTP_PROXY" or "REQUEST_METHOD" not in os.environ
    ]
    for name in [*names, *_variables("all_proxy")]:
        if value := os.environ.get(name):
            return None if _is_excepted(host, port) else _proxy_url(value, name)
    return None


def client(settings: RegistrySettings, base: str | None = None) -> httpx.Client:
    """Return a new client for API calls. It follows no redirects and adds no header by itself.

    :param settings: the connection.
    :param base: its base URL, where that is not its ``host``.
    """
    transport = _Transport(settings, base)
    return httpx.Client(transport=transport, timeout=_TIMEOUT, trust_env=False, follow_redirects=False)


def async_client(settings: RegistrySettings, base: str | None = None) -> httpx.AsyncClient:
    """Return a new client for API calls on one event loop. Otherwise as :func:`client`."""
    transport = _AsyncTransport(settings, base)
    return httpx.AsyncClient(transport=transport, timeout=_TIMEOUT, trust_env=False, follow_redirects=False)


class _Transport(httpx.BaseTransport):
    """Sends each request over the proxy that :func:`proxy_for` names: httpx's own rules know no address ranges."""

    def __init__(self, settings: RegistrySettings, base: str | None) -> None:
        from airflow_provider_modelsync.core.http import backends

        self._backends = backends
        self._settings = settings
        self._reach = Reach(settings, base)
        guard_logs(secrets_of(settings))
        context_for(base or settings.host or "", None, settings)  # what is wrong with it is told at once
        self._ways: dict[tuple[int, str | None, bool], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._reach.check(request.url)
        proxy = proxy_for(str(request.url), self._settings)
        # Connections are the parent's after a fork.
        key = generation(), proxy, request.url.scheme in _WEB_SCHEMES.values()
        if key not in self._ways:
            context = context_for(str(request.url), proxy, self._settings) or _TRUSTS_NOBODY
            way = httpx.HTTPTransport(context, limits=_LIMITS, proxy=_for_httpx(proxy, context))
            self._backends.connect_by(way._pool, self._backends.Backend(self._reach, is_proxy=proxy is not None))
            self._ways.setdefault(key, way)
        return self._ways[key].handle_request(request)

    def close(self) -> None:
        for way in self._ways.values():
            way.close()


class _AsyncTransport(httpx.AsyncBaseTransport):
    """As :class:`_Transport`, for an event loop."""

    def __init__(self, settings: RegistrySettings, base: str | None) -> None:
        from airflow_provider_modelsync.core.http import backends

        backends.load_all()
        self._backends = backends
        self._settings = settings
        self._reach = Reach(settings, base)
        guard_logs(secrets_of(settings))
        self._context = ssl_context(settings)
        self._ways: dict[tuple[int, str | None], httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._reach.check(request.url)
        proxy = proxy_for(str(request.url), self._settings)
        key = generation(), proxy  # connections are the parent's after a fork
        if key not in self._ways:
            way = httpx.AsyncHTTPTransport(self._context, limits=_LIMITS, proxy=_for_httpx(proxy, self._context))
            self._backends.connect_by(way._pool, self._backends.AsyncBackend(self._reach, is_proxy=proxy is not None))
            self._ways[key] = way
        return await self._ways[key].handle_async_request(request)

    async def aclose(self) -> None:
        for way in self._ways.values():
            await way.aclose()


def _for_httpx(proxy: str | None, context: ssl.SSLContext) -> httpx.Proxy | None:
    return httpx.Proxy(proxy, ssl_context=context if proxy.startswith("https:") else None) if proxy else None


@functools.lru_cache(maxsize=32)
def _context(
    verified: bool,
    authorities: _Stamp | None,
    directory: Path | None,
    certificate: _Stamp | None,
    key: _Stamp | None,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities or directory:
        try:
            context.load_verify_locations(authorities and authorities[0], directory)
        except (ssl.SSLError, OSError):
            name = authorities[0] if authorities else directory
            raise InvalidInput(f"{name} holds no CA certificates in PEM form", argument="ca_bundle") from None
    else:
        _trust_the_system(context)
    if certificate:
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(certificate[0], key and key[0], password="")
        except (ssl.SSLError, OSError):
            raise InvalidInput(
                f"{certificate[0]} and its key are no pair of PEM files without a password", argument="client_cert"
            ) from None
    return context


def _trust_the_system(context: ssl.SSLContext) -> None:
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):  # a bare container
        import certifi

        context.load_verify_locations(certifi.where())


def _stamp(path: Path | None, argument: str) -> _Stamp | None:
    if path is None:
        return None
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such path can exist"
        raise InvalidInput(f"{path}: {why}", argument=argument) from None
    # OpenSSL would wait for whoever writes to a pipe, or read a device for ever.
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_PEM:
        raise InvalidInput(f"{path} is no regular file of at most {_MOST_PEM >> 20} MiB", argument=argument)
    return str(path), facts.st_mtime_ns


def _path_in(variable: str, is_there: Callable[[Path], bool]) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    if not is_there(Path(value)):
        raise InvalidInput(
            f"the environment variable {variable} names {value}, which does not exist", argument=variable
        )
    return Path(value)


def _variables(name: str) -> tuple[str, str]:
    return name, name.upper()


def _proxy_url(value: str, source: str) -> str:
    # Never show the value: it may hold a password.
    where = "the connection's proxy" if source == "proxy" else f"the environment variable {source}"
    text = value if "://" in value else f"http://{value}"
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput(f"{where} is no URL", argument=source) from None
    if url.scheme.startswith("socks"):
        raise InvalidInput(f"{where} names a SOCKS proxy; only http and https proxies are supported", argument=source)
    if url.scheme not in ("http", "https") or not has_proper_host(url):
        raise InvalidInput(f"{where} is no http or https URL", argument=source)
    return text


def _is_excepted(host: str, port: int | None) -> bool:
    for variable in _variables("no_proxy"):
        if value := os.environ.get(variable):
            return any(_covers(entry, host, port, variable) for entry in re.split(r"[,\s]+", value) if entry)
    return False


def _covers(entry: str, host: str, port: int | None, variable: str) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            raise InvalidInput(
                f"the environment variable {variable} holds {entry!r}, which is no address range", argument=variable
            ) from None
        return address is not None and address.version == network.version and address in network
    name, wanted_port = entry.lower(), ""
    if matched := re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", name):
        name, wanted_port = matched[1], matched[2]
    if wanted_port and int(wanted_port) != port:
        return False
    name = name.strip("[]")
    if _address(name) is not None or address is not None:
        return address is not None and address == _address(name)
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
