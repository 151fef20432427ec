"""Where requests may go: origins, addresses that a server hands out, and redirects."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

import httpx

from airflow_provider_modelsync.core.errors import InvalidInput
from airflow_provider_modelsync.core.flow.threads import Threads
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
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_TRANSLATED = ipaddress.ip_network("::ffff:0:0:0/96")  # IPv4 behind a stateless translator
_COMPATIBLE = ipaddress.ip_network("::/96")  # ::127.0.0.1, the old form
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # the third quarter of such an address
# Where clouds tell machines their credentials. None is ever the address of a model.
_METADATA_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.169.0/24",  # nearly all clouds
            "169.254.170.0/24",  # containers and pods on AWS
            "169.254.0.23",  # Tencent
            "169.254.42.42",  # Scaleway
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure's wire server
            "192.0.0.192",  # Oracle
            "fd00:ec2::/32",  # AWS
            "fd20:ce::254",  # Google
            "fd00:42::42",  # Scaleway
        ),
    )
)
_METADATA_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.internal",
        "metadata.oraclecloud.com",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "metadata.tencentyun.com",
    }
)
_LOCAL_NAMES = re.compile(r"(.*\.)?(localhost|localdomain)[46]?|ip6-(localhost|loopback)")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Found = tuple[Any, Any, int, str, Any]  # what a look-up answers
Origin = tuple[str, str, int | None]


@lru_cache(maxsize=256)
def _read(url: str) -> httpx.URL:
    """Read a URL. A transfer looks at the same few again and again, and reading one takes a tenth of a millisecond."""
    return httpx.URL(url)


@lru_cache(maxsize=256)
def joined(url: str, location: str) -> httpx.URL:
    """Return where a URL leads to as another sees it, as :meth:`httpx.URL.join` does, which reads both each time."""
    return _read(urljoin(str(_read(url)), str(_read(location))))


def origin_of(url: httpx.URL | str) -> Origin:
    """Return scheme, host and port of a URL, to be compared."""
    parsed = _read(url) if isinstance(url, str) else url
    return parsed.scheme, parsed.host.rstrip("."), parsed.port or _DEFAULT_PORTS.get(parsed.scheme)


def has_proper_host(url: httpx.URL) -> bool:
    """Whether a URL names a host, or an address, that can exist: httpx takes nearly anything."""
    return _HOST.fullmatch(url.raw_host.decode("ascii", "replace")) is not None


class Reach:
    """What the requests of a connection may reach.

    Metadata services never. This machine and link-local addresses only where the user named the host, or where the
    connection's own URLs are http or lead to this machine. Names are judged before they are looked up; what they stand
    for is judged by whoever connects, with :meth:`resolve`, and connected to as it was judged.

    :param settings: the connection.
    :param base: its base URL, where that is not its ``host``.
    """

    def __init__(self, settings: RegistrySettings, base: str | None = None) -> None:
        self._settings = settings
        named = [base, settings.host, *(value for _, value in settings if isinstance(value, str) and "://" in value)]
        homes = [home for home in map(_home, named) if home]
        self._hosts = {home.host.rstrip(".") for home in homes}
        self._is_open = any(_is_lenient(home) for home in homes)

    def check(self, url: httpx.URL | str) -> None:
        """Raise :class:`InvalidInput` when the host of a URL, as it is written, must not be reached."""
        try:
            parsed = _read(url) if isinstance(url, str) else url
        except (httpx.InvalidURL, ValueError):
            shown = show_url(url, secrets_of(self._settings))
            raise InvalidInput(f"{shown} is no URL", argument="host") from None
        host = parsed.host.rstrip(".")
        if fault := _fault_of_host(host, is_trusted=self._trusts(host, origin_of(parsed)[2])):
            shown = show_url(parsed, secrets_of(self._settings))
            raise InvalidInput(f"{shown} {fault}; nothing is sent there", argument="host")

    def resolve(self, host: str, port: int, *, is_proxy: bool = False) -> list[Found]:
        """Look a name up and return where to connect to.

        :param host: a name or an address.
        :param port: TCP port.
        :param is_proxy: whether it is the proxy, which the user or the environment named.
        :raises InvalidInput: when it stands for what must not be reached.
        :raises OSError: when it stands for nothing.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        is_trusted = is_proxy or self._trusts(host.lower().rstrip("."), port)
        for *_, address in found:
            if fault := _fault_of_host(str(address[0]), is_trusted=is_trusted):
                what = "the proxy" if is_proxy else host
                raise InvalidInput(f"{what} stands for an address that {fault}; nothing is sent there", argument="host")
        return found

    async def aresolve(self, host: str, port: int, *, is_proxy: bool = False) -> list[Found]:
        """As :meth:`resolve`, on an event loop, whose own threads a silent name server must not keep."""
        threads = Threads.of(self._settings.conn_id)
        return await threads.run(lambda: self.resolve(host, port, is_proxy=is_proxy))

    def _trusts(self, host: str, port: int | None) -> bool:
        return self._is_open or host in self._hosts or _is_listed(host, port, self._settings)


def check_server_url(url: str, settings: RegistrySettings, *, base: str | None = None) -> None:
    """Check a URL that a server gave us, such as a presigned one, before anything is sent there.

    It must be https and name no loopback or link-local address, unless the connection's own base URL is http or
    loopback, or the host is listed in ``presigned_hosts``. It never names a metadata service.

    :param url: the URL.
    :param settings: the connection.
    :param base: the connection's base URL, where it is not its ``host``.
    :raises InvalidInput: saying what is wrong with the URL.
    """
    parsed, fault = _parse(url)
    if parsed is not None and not fault:
        host = parsed.host.rstrip(".")
        is_trusted = _is_listed(host, origin_of(parsed)[2], settings)
        if home := _home(base or settings.host):
            is_trusted |= _is_lenient(home)
        fault = _fault_of_host(host, is_trusted=is_trusted)
        if not (fault or is_trusted or parsed.scheme == "https"):
            fault = "is not https"
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
        target = joined(url, location)
    except (httpx.InvalidURL, ValueError):
        raise InvalidInput(f"{shown} redirects to something that is no URL", argument="host") from None
    if origin_of(target) == origin_of(url) and not target.userinfo:
        return str(target)
    if _read(url).scheme == "https" and target.scheme == "http":
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
        parsed = _read(url)
    except (httpx.InvalidURL, ValueError):
        return None, "is no URL"
    if parsed.scheme not in ("http", "https"):
        return parsed, "is not https"
    if parsed.userinfo:
        return parsed, "holds credentials"
    if not has_proper_host(parsed):
        return parsed, "names no proper host"
    return parsed, None


def _home(url: str | None) -> httpx.URL | None:
    """Return a URL that the user named."""
    try:
        return _read(url if "://" in url else f"https://{url}") if url else None
    except (httpx.InvalidURL, ValueError):
        return None


def _is_lenient(home: httpx.URL) -> bool:
    """Whether a connection with this URL may be led to local addresses, and without encryption."""
    return home.scheme == "http" or (home.scheme == "https" and _is_loopback(home.host))


def _is_listed(host: str, port: int | None, settings: RegistrySettings) -> bool:
    listed = {re.sub(r"[\[\]]", "", entry.lower()).rstrip(".") for entry in settings.presigned_hosts}
    return not listed.isdisjoint((host, f"{host}:{port}"))


def _fault_of_host(host: str, *, is_trusted: bool) -> str | None:
    """Say why a host, as it is written, must not be reached."""
    addresses = _addresses_in(host)
    if host.rstrip(".").lower() in _METADATA_NAMES or any(map(_is_metadata, addresses)):
        return "names a metadata service"
    if is_trusted:
        return None
    if _is_loopback(host):
        return "names this machine"
    if any(address.is_link_local or address.is_multicast for address in addresses):
        return "names a link-local address"
    return None


def _is_metadata(address: _Address) -> bool:
    return any(address.version == network.version and address in network for network in _METADATA_NETWORKS)


def _is_loopback(host: str) -> bool:
    if _LOCAL_NAMES.fullmatch(host.lower().rstrip(".")):
        return True
    return any(address.is_loopback or address.is_unspecified for address in _addresses_in(host))


def _addresses_in(host: str) -> list[_Address]:
    """Return the IP address that a host is, in any spelling a resolver takes, and those embedded in it."""
    try:
        # Also takes 2130706433, 0x7f.1 and 0177.0.0.1, as resolvers do.
        return [ipaddress.ip_address(socket.inet_aton(host))]
    except (OSError, UnicodeError):
        pass
    try:
        address = ipaddress.ip_address(host.strip("[]").rstrip("."))
    except ValueError:
        return []
    return [address, *_embedded_in(address)] if isinstance(address, ipaddress.IPv6Address) else [address]


def _embedded_in(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that packets to an IPv6 address may end at."""
    value = int(address)
    last = ipaddress.IPv4Address(value & 0xFFFFFFFF)
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _TRANSLATED or address in _COMPATIBLE or value >> 32 & 0xFFFFFFFF in _ISATAP:
        inside.append(last)
    if address in _NAT64_LOCAL:
        # Such a prefix has 48, 56, 64 or 96 bits; the octet after the first 64 bits is left out of the address.
        octets = address.packed[:8] + address.packed[9:]
        inside += [ipaddress.IPv4Address(octets[start : start + 4]) for start in (6, 7, 8, 11)]
    if _is_metadata(last):  # networks choose prefixes of their own for translators; clouds do the same over IPv6
        inside.append(last)
    return [part for part in inside if part is not None]
