"""Where webhooks may go."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from functools import partial

import pytest
from pydantic import ValidationError

from models import webhook_urls
from models.settings import Settings
from models.webhook_urls import Busy, Refused, SystemLookup, Target, addresses_of, is_public, parse, system_lookup

HTTPS_ALONE = Settings()
HTTP_TOO = Settings(webhook_http=True)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example", Target("https", "hooks.example", 443, "/")),
        ("HTTPS://Hooks.Example:443/a%20b?c=d&e", Target("https", "hooks.example", 443, "/a%20b?c=d&e")),
        ("https://hooks.example?q", Target("https", "hooks.example", 443, "/?q")),
        ("https://a_b.xn--bcher-kva.example:8443/x", Target("https", "a_b.xn--bcher-kva.example", 8443, "/x")),
        ("https://93.184.215.14/", Target("https", "93.184.215.14", 443, "/")),
        ("https://[2606:2800:021f:0::1]:1024/", Target("https", "2606:2800:21f::1", 1024, "/")),
        ("https://hooks.example/@me:22", Target("https", "hooks.example", 443, "/@me:22")),
    ],
)
def test_a_url_is_taken_apart_once(url: str, target: Target) -> None:
    assert parse(url, HTTPS_ALONE) == target


def test_http_is_called_where_the_deployment_says_so() -> None:
    assert parse("http://hooks.example:80", HTTP_TOO).netloc == "hooks.example"
    assert parse("http://[2606::1]:443/", HTTP_TOO).netloc == "[2606::1]:443"
    with pytest.raises(Refused, match="Only https"):
        parse("http://hooks.example", HTTPS_ALONE)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "//hooks.example/",
        "file:///etc/passwd",
        "gopher://hooks.example/",
        "ftp://hooks.example/",
        "https:hooks.example",
        "https:///path",
        "https://",
        "https://user@hooks.example/",
        "https://user:password@hooks.example/",
        "https://hooks.example@127.0.0.1/",
        "https://hooks.example\\@127.0.0.1/",
        "https://hooks.example#@127.0.0.1/",
        "https://hooks.example:22/",
        "https://hooks.example:25/",
        "https://hooks.example:0/",
        "https://hooks.example:65536/",
        "https://hooks.example:port/",
        "https://hooks.example:/",
        "https://hooks.example:443:22/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.0.1./",
        "https://127.0.0.0x1/",
        "https://1.2.3.4.5/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://::1/",
        "https://hooks..example/",
        "https://.hooks.example/",
        "https://hooks.example./",
        "https://-hooks.example/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 127}example/",
        "https://h%6Foks.example/",
        "https://hooks.example/a b",
        "https://hooks.example/a\r\nHost: x",
        "https://hooks.example/\x00",
        "https://h\u00f6\u00f6ks.example/",
        "https://hooks\u3002example/",
        "https://\u2460\u2461\u2466.0.0.1/",
    ],
)
def test_other_spellings_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        parse(url, HTTP_TOO)


PRIVATE = """
0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.8.8.8 169.254.169.254 172.16.0.1 192.0.0.192 192.0.2.1
192.88.99.1 192.168.1.1 168.63.129.16 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1
255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1
64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 3fff::1 fc00::1
fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
""".split()  # noqa: SIM905


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_that_is_not_public_is_called_whatever_name_leads_there(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    for answer in ([address], ["93.184.215.14", address], [address, "93.184.215.14"]):
        with pytest.raises(Refused, match="does not lead to public addresses alone"):
            addresses_of(parse("https://hooks.example", HTTPS_ALONE), HTTPS_ALONE, lambda *_, found=answer: found)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are(address: str) -> None:
    target = parse("https://hooks.example", HTTPS_ALONE)
    assert addresses_of(target, HTTPS_ALONE, lambda *_: [address, address]) == [str(ipaddress.ip_address(address))]


def test_an_unknown_name_and_a_private_one_get_the_same_words() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError

    said = set()
    for lookup in (unknown, lambda *_: [], lambda *_: ["10.0.0.1"]):
        with pytest.raises(Refused) as refusal:
            addresses_of(parse("https://db.internal", HTTPS_ALONE), HTTPS_ALONE, lookup)
        said.add(str(refusal.value))
    assert len(said) == 1


def test_the_deployment_may_allow_hosts_and_networks() -> None:
    settings = Settings.model_validate({"webhook_allowed": "10.1.0.0/16, Hooks.Internal,fd00::/64"})
    assert settings.webhook_allowed == ("10.1.0.0/16", "hooks.internal", "fd00::/64")
    inside = parse("https://other.internal", settings)
    assert addresses_of(inside, settings, lambda *_: ["10.1.2.3", "fd00::7"]) == ["10.1.2.3", "fd00::7"]
    with pytest.raises(Refused):
        addresses_of(inside, settings, lambda *_: ["10.1.2.3", "10.2.0.1"])
    named = parse("https://hooks.internal", settings)
    assert addresses_of(named, settings, lambda *_: ["10.2.0.1"]) == ["10.2.0.1"]
    for wrong in ("10.1.0.1/16", "a b", "https://hooks.internal", "a..b"):
        with pytest.raises(ValidationError):
            Settings.model_validate({"webhook_allowed": wrong})


def test_they_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_WEBHOOK_ALLOWED", "127.0.0.0/8,localhost")
    assert Settings().webhook_allowed == ("127.0.0.0/8", "localhost")


def test_names_are_looked_up_by_this_machine_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in system_lookup("a", "localhost", 80)
    for nonsense in ("no-such-name.invalid", "a" * 64, "x." * 200):
        with pytest.raises(OSError):  # noqa: PT011
            system_lookup("a", nonsense, 80)

    def slow(*_: object, **__: object) -> list[object]:
        time.sleep(0.3)
        return []

    monkeypatch.setattr(webhook_urls, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(TimeoutError):
        system_lookup("a", "slow.example", 80)


def test_dead_name_servers_of_one_tenant_keep_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = threading.Event()

    def dead(host: str, *_: object, **__: object) -> list[object]:
        alive.wait(10)
        return []

    monkeypatch.setattr(webhook_urls, "LOOKUP_SECONDS", 0.02)
    monkeypatch.setattr(socket, "getaddrinfo", dead)
    lookup = SystemLookup()

    def busy_after(tenant: str) -> tuple[int, bool]:
        """How many of the tenant's wait for an answer, and whether it is all tenants' number that lets no more."""
        for count in range(20):
            try:
                lookup(tenant, "dead.example", 443)
            except TimeoutError:
                pass
            except Busy as busy:
                return count, busy.by_all
        raise AssertionError(tenant)

    assert [busy_after(tenant) for tenant in "abcdefgh"] == [(2, False)] * 8
    assert busy_after("i") == (0, True)
    assert lookup("a", "93.184.215.14", 443) == ["93.184.215.14"]
    with pytest.raises(Busy):
        addresses_of(parse("https://hooks.example", HTTPS_ALONE), HTTPS_ALONE, partial(lookup, "i"))
    alive.set()
    deadline = time.monotonic() + 5
    while lookup._running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lookup("i", "hooks.example", 443) == []
