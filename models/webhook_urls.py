"""Where a webhook may go: https, an ordinary port, and public addresses, however the URL is spelt.

A URL is taken apart here, once, and called by its parts and by the addresses found here (`worker/post.py`): no second
parser, no second look-up, no redirect can lead elsewhere. It is asked when a job is submitted and before each sending.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from models.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Sequence[str]]
"""From a host and a port to its addresses. Raises OSError, and `Busy` where it cannot look now."""
TenantLookup = Callable[[str, str, int], Sequence[str]]
"""The same on behalf of a tenant, who comes first."""

LOOKUP_SECONDS = 5.0
LOOKUPS = 16
LOOKUPS_OF_A_TENANT = 2
_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?", re.I)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.I)
_NAME = re.compile(r"(?=.{1,253}$)(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = (  # of those that Python 3.11 calls global
    ipaddress.IPv6Network("2001::/23"),  # protocols of their own, Teredo's tunnels among them
    ipaddress.IPv6Network("2002::/16"),  # 6to4's tunnels
    ipaddress.IPv6Network("3fff::/20"),  # for examples
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocols of their own, and a cloud's metadata
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv4Network("168.63.129.16/32"),  # a cloud's own host, as 169.254.169.254 is elsewhere
)


class Refused(Exception):
    """A URL that is not called; the message says what to change."""


class Busy(Exception):
    """As many names are being looked up as may be at once, by this tenant or, `by_all`, by all of them together."""

    def __init__(self, *, by_all: bool) -> None:
        super().__init__("Too many names are being looked up.")
        self.by_all = by_all


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL. `host` is a name in lower case, or an address without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str, settings: Settings) -> Target:
    """Raises `Refused`."""
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise Refused("A URL has ASCII characters alone, and no spaces: write others as %XX, and names as xn--….")
    found = _URL.fullmatch(url)
    if found is None:
        raise Refused("Write it whole, as https://hooks.example.com/path, without a fragment.")
    scheme = found["scheme"].lower()
    if scheme != "https" and not (scheme == "http" and settings.webhook_http):
        raise Refused("Only https:// is called here.")
    if "@" in found["authority"]:
        raise Refused("No user or password belongs into the URL; messages are signed instead.")
    authority = _AUTHORITY.fullmatch(found["authority"])
    if authority is None:
        raise Refused("The host is not a name or an address that can be called.")
    port = int(authority["port"] or _DEFAULT_PORTS[scheme])
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise Refused(f"Port {port} is not called: use 443, 80, or one from 1024 up.")
    path = (found["path"] or "/") + (found["query"] or "")
    return Target(scheme, _host(authority["host"].lower()), port, path)


def addresses_of(target: Target, settings: Settings, lookup: Lookup) -> list[str]:
    """The addresses to connect to: all there are now, none of which is out of bounds. Raises `Refused` and `Busy`.

    One answer for a name that is unknown and one that is private, so that nobody can explore a network's names."""
    try:
        found = [ipaddress.ip_address(each) for each in lookup(target.host, target.port)]
    except OSError:
        found = []
    if not found or not (target.host in settings.webhook_allowed or all(_may_call(each, settings) for each in found)):
        raise Refused(
            f"{target.host} does not lead to public addresses alone: either it does not resolve now, or into a private "
            "network. Whoever runs this service can allow hosts and networks by MODELPRESS_WEBHOOK_ALLOWED."
        )
    return [str(each) for each in dict.fromkeys(found)]


class SystemLookup:
    """As this machine resolves names, within 5 seconds, which its resolver does not promise by itself.

    A look-up counts until the resolver has given up, whoever still waits for it: a tenant whose name servers are dead
    takes two places of sixteen, and nobody's time. Raises `Busy` at once where there is no place. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()

    def __call__(self, tenant: str, host: str, port: int) -> list[str]:
        if _is_address(host):
            return [host]
        self._enter(tenant)
        answers: list[list[str] | OSError] = []

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answers.append([str(address[0]) for *_, address in found])
            except (OSError, UnicodeError) as error:
                answers.append(error if isinstance(error, OSError) else OSError(str(error)))
            finally:
                self._leave(tenant)

        thread = threading.Thread(target=look_up, name=f"look up {host}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this machine has no thread left
            self._leave(tenant)
            raise Busy(by_all=True) from None
        thread.join(LOOKUP_SECONDS)
        answer = answers[0] if answers else TimeoutError()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _enter(self, tenant: str) -> None:
        with self._lock:
            if self._running[tenant] >= LOOKUPS_OF_A_TENANT:
                raise Busy(by_all=False)
            if self._running.total() >= LOOKUPS:
                raise Busy(by_all=True)
            self._running[tenant] += 1

    def _leave(self, tenant: str) -> None:
        with self._lock:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]


system_lookup = SystemLookup()
"""This process's: its places are shared by all that look up here."""


def is_public(address: Address) -> bool:
    """Whether anybody on the Internet could reach it. What wraps an IPv4 address is judged by that one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None:
            return address.is_global and address in _GLOBAL_UNICAST and not _within(address, _NOT_PUBLIC)
        address = inner
    return address.is_global and not address.is_multicast and not _within(address, _NOT_PUBLIC)


def _host(host: str) -> str:
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _NUMBER.fullmatch(host.rpartition(".")[2]):  # what browsers and resolvers take for an IPv4 address
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise Refused("An address is written as four decimal numbers, or as IPv6 in brackets.") from None
    if not _NAME.fullmatch(host):
        raise Refused("The host is not a name or an address that can be called.")
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _may_call(address: Address, settings: Settings) -> bool:
    return is_public(address) or _within(address, settings.webhook_networks)


def _within(address: Address, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(address in network for network in networks)
