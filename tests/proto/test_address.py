"""What stands between a caller and an address, and what is said when a call fails."""

import pytest

from diastole.proto.address import PROXIES, Address, NoAddressError, cause, channel_options, is_loopback

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:80: Failed to connect: refused"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7700", "127.0.0.1", 7700),
        ("[::1]:65535", "::1", 65535),
        ("pi-4.lan.:1", "pi-4.lan.", 1),
        ("a_b:80", "a_b", 80),
        ("[fe80::1%eth0]:5", "fe80::1%eth0", 5),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, text)
    assert str(address.at(9)) == text.rpartition(":")[0] + ":9"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not host:port"),
        ("host", "is not host:port"),
        ("host:", "is not host:port"),
        ("host:port", "is not host:port"),
        ("host:-1", "is not host:port"),
        ("host:٣", "is not host:port"),
        ("host:65536", "1 to 65535 is accepted"),
        ("host:0", "1 to 65535 is accepted"),
        ("::1:7700", "stands in brackets"),
        (":7700", "neither a host's name nor an IP address"),
        ("[127.0.0.1]:1", "neither a host's name nor an IP address"),
        ("[::1:1", "stands in brackets"),
        ("300.1.1.1:1", "neither a host's name nor an IP address"),
        ("a b:1", "neither a host's name nor an IP address"),
        ("a..b:1", "neither a host's name nor an IP address"),
        ("unix:/tmp/socket:1", "stands in brackets"),
        ("x" * 64 + ":1", "neither a host's name nor an IP address"),
        ("user@host:1", "neither a host's name nor an IP address"),
    ],
)
def test_what_is_no_address_is_refused(text: str, words: str) -> None:
    with pytest.raises(NoAddressError, match=words) as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


def test_any_free_port_is_for_who_listens() -> None:
    assert Address.parse("127.0.0.1:0", listening=True).port == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "LocalHost:1", "[::1]:1", "127.8.8.8:1"])
def test_loopback_is_called_without_a_proxy(address: str) -> None:
    assert is_loopback(address)
    assert dict(channel_options(address)) == {"grpc.enable_http_proxy": 0}


@pytest.mark.parametrize("address", ["10.0.0.1:1", "server:1", "[::2]:1", "localhost.example:1"])
def test_another_machine_may_be_called_through_a_proxy(address: str) -> None:
    assert not is_loopback(address)
    assert channel_options(address) == ()


def test_the_cause_is_what_grpc_says_last_in_one_line() -> None:
    assert cause("server:1", REFUSED) == "Failed to connect: refused"
    assert cause("server:1", "one\ntwo") == "one two"
    assert cause("server:1", None) == "no reason given"


@pytest.mark.parametrize("variable", PROXIES)
def test_the_cause_names_the_proxy_without_its_password(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://me:secret@proxy.example:3128")
    text = cause("server:1", REFUSED)
    assert text == f"Failed to connect: refused; called through the proxy in {variable} (proxy.example:3128)"
    assert cause("127.0.0.1:1", REFUSED) == "Failed to connect: refused"


@pytest.mark.parametrize(("spared", "used"), [("other", True), (".com, .example", False), ("10.0.0.0/8", True)])
def test_the_cause_does_not_name_a_proxy_that_no_proxy_spares(
    monkeypatch: pytest.MonkeyPatch, spared: str, used: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", spared)
    assert ("proxy" in cause("server.example:1", REFUSED)) == used
    assert ("proxy" in cause("10.0.0.1:1", REFUSED)) == (spared != "10.0.0.0/8")
