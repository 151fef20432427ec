"""Where requests may go: origins, addresses that a server hands out, and redirects."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping

import httpx

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.redact import secrets_of, show_url
from airflow_provider_modelsync.core.settings import RegistrySettings

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# What may follow a redirect to another origin. A list of what may not would miss the next credential header.
_HARMLESS_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "content-type",
        "if-match",
        "if-none-match",
        "if-range",
        "range",
        "user-agent",
    }
)
_SHORTEST_CREDENTIAL = 6  # characters; a shorter value of such a header is a version or a flag
_HOST = re.compile(r"(?i)[a-z0-9_]([a-z0-9._-]*[a-z0-9_.-])?|[0-9a-f:.]*:[0-9a-f:.]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        # EC2 over IPv6, Alibaba, Azure's wire server, Oracle; the common 169.254.169.254 is link-local anyway.
        ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, str, int | None]


def origin_of(url: httpx.URL | str) -> Origin:
    """Return scheme, host and port of a URL, to be compared."""
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host.rstrip("."), parsed.port or _DEFAULT_PORTS.get(parsed.scheme)


def has_proper_host(url: httpx.URL) -> bool:
    """Whether a URL names a host, or an address, that can exist: httpx takes nearly anything."""
    return _HOST.fullmatch(url.raw_host.decode("ascii", "replace")) is not None


def check_server_url(url: str, settings: RegistrySettings, *, base: str | None = None) -> None:
    """Check a URL that a server gave us, such as a presigned one, before anything is sent there.

    It must be https and name no loopback, link-local or metadata address, unless the connection's own base
    URL is http or loopback, or the host is listed in ``presigned_hosts``.

    :param url: the URL.
    :param settings: the connection.
    :param base: the connection's base URL, where it is not its ``host``.
    :raises InvalidInput: saying what is wrong with the URL.
    """
    parsed, fault = _parse(url)
    if parsed is not None and not fault and not _is_trusted(parsed, settings, base or settings.host):
        fault = _fault_of(parsed)
    if fault:
        shown = show_url(url, secrets_of(settings))
        raise InvalidInput(f"the server gave the address {shown}, which {fault}", argument="presigned_hosts")


def redirect_target(url: str, location: str, settings: RegistrySettings, *, base: str | None = None) -> str:
    """Resolve and check the address that a redirect points to.

    :param url: what was asked.
    :param location: the ``Location`` header of the answer.
    :param settings: the connection.
    :param base: the connection's base URL, where it is not its ``host``.
    :return: the absolute URL.
    :raises InvalidInput: when it must not be followed.
    """
    shown = show_url(url, secrets_of(settings))
    try:
        target = httpx.URL(url).join(location)
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput(f"{shown} redirects to something that is no URL", argument="host") from None
    if origin_of(target) == origin_of(url) and not target.userinfo:
        return str(target)
    if httpx.URL(url).scheme == "https" and target.scheme == "http":
        to = show_url(target, secrets_of(settings))
        raise InvalidInput(f"{shown} redirects to {to}, which is not encrypted", argument="host")
    check_server_url(str(target), settings, base=base)
    return str(target)


def headers_for(target: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of a request's headers that may go along when it is redirected.

    :param target: where it goes.
    :param url: where it went.
    :param headers: its headers.
    """
    if origin_of(target) == origin_of(url):
        return {name: value for name, value in headers.items() if name.lower() != "host"}
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS_HEADERS}


def credentials_in(headers: Mapping[str, str]) -> Iterable[str]:
    """Return the header values that may be secret, with and without their scheme word."""
    for name, value in headers.items():
        if name.lower() in ("authorization", "proxy-authorization", "cookie") or any(
            word in name.lower() for word in ("token", "key", "secret", "auth")
        ):
            yield from (part for part in (value, value.rpartition(" ")[2]) if len(part) >= _SHORTEST_CREDENTIAL)


def _parse(url: str) -> tuple[httpx.URL | None, str | None]:
    # Parsers disagree about blanks, backslashes and foreign letters; presigned URLs hold none of them.
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return None, "holds characters that no URL may hold"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return None, "is no URL"
    if parsed.scheme not in ("http", "https"):
        return parsed, "is not https"
    if parsed.userinfo:
        return parsed, "holds credentials"
    if not has_proper_host(parsed):
        return parsed, "names no proper host"
    return parsed, None


def _is_trusted(url: httpx.URL, settings: RegistrySettings, base: str | None) -> bool:
    listed = {re.sub(r"[\[\]]", "", host.lower()).rstrip(".") for host in settings.presigned_hosts}
    if {url.host.rstrip("."), f"{url.host.rstrip('.')}:{origin_of(url)[2]}"} & listed:
        return True
    if not base:
        return False
    home = httpx.URL(base if "://" in base else f"https://{base}")
    return home.scheme == "http" or (home.scheme == "https" and _is_loopback(home.host))


def _fault_of(url: httpx.URL) -> str | None:
    if url.scheme != "https":
        return "is not https"
    host = url.host.rstrip(".")
    if host in _METADATA_NAMES:
        return "names a metadata service"
    if _is_loopback(host):
        return "names this machine"
    for address in _addresses_in(host):
        if address in _METADATA_ADDRESSES:
            return "names a metadata service"
        if address.is_link_local or address.is_multicast:
            return "names a link-local address"
    return None


def _is_loopback(host: str) -> bool:
    host = host.rstrip(".")
    if (
        host == "localhost"
        or host.endswith((".localhost", ".localdomain"))
        or host in ("ip6-localhost", "ip6-loopback")
    ):
        return True
    return any(address.is_loopback or address.is_unspecified for address in _addresses_in(host))


def _addresses_in(host: str) -> list[_Address]:
    """Return the IP address that a host is, in any spelling a resolver takes, and the one embedded in it."""
    try:
        # Also takes 2130706433, 0x7f.1 and 0177.0.0.1, as resolvers do.
        return [ipaddress.ip_address(socket.inet_aton(host))]
    except OSError:
        pass
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return []
    if not isinstance(address, ipaddress.IPv6Address):
        return [address]
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or int(address) >> 32 == 0:  # the latter: ::127.0.0.1, the old compatible form
        inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [address, *(part for part in inside if part is not None)]
