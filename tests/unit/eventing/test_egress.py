"""Addresses that webhooks may reach (OWASP's SSRF cases, with the encodings of its cheat sheet)."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import InvalidJob
from eventing.process.egress import AllowList, check_url, may_dial, refusal

NOTHING = AllowList()

INSIDE = [
    pytest.param("127.0.0.1", id="loopback"),
    pytest.param("127.255.255.254", id="all of loopback"),
    pytest.param("0.0.0.0", id="unspecified, which Linux dials as loopback"),
    pytest.param("10.0.0.1", id="private 10"),
    pytest.param("172.31.255.255", id="private 172"),
    pytest.param("192.168.1.1", id="private 192"),
    pytest.param("169.254.169.254", id="metadata"),
    pytest.param("100.100.100.200", id="metadata in carrier NAT"),
    pytest.param("168.63.129.16", id="host agent on a public-looking address"),
    pytest.param("192.0.0.192", id="metadata in IETF range"),
    pytest.param("224.0.0.1", id="multicast"),
    pytest.param("255.255.255.255", id="broadcast"),
    pytest.param("198.18.0.1", id="benchmark range"),
    pytest.param("[::1]", id="loopback 6"),
    pytest.param("[::]", id="unspecified 6"),
    pytest.param("[::ffff:127.0.0.1]", id="mapped"),
    pytest.param("[::ffff:169.254.169.254]", id="mapped metadata"),
    pytest.param("[::127.0.0.1]", id="compatible"),
    pytest.param("[fd00:ec2::254]", id="metadata 6"),
    pytest.param("[fe80::1]", id="link-local 6"),
    pytest.param("[fe80::1%25eth0]", id="link-local 6 with a zone"),
    pytest.param("[fec0::1]", id="site-local"),
    pytest.param("[ff02::1]", id="multicast 6"),
    pytest.param("[64:ff9b::7f00:1]", id="NAT64 of loopback"),
    pytest.param("[64:ff9b::a9fe:a9fe]", id="NAT64 of metadata"),
    pytest.param("[64:ff9b:1::a00:1]", id="NAT64 with a local prefix"),
    pytest.param("[2002:7f00:1::]", id="6to4 of loopback"),
    pytest.param("[2002:a9fe:a9fe::1]", id="6to4 of metadata"),
    pytest.param("[2001:0:4136:e378:8000:63bf:f5ff:fffe]", id="Teredo"),
    pytest.param("[2001:db8::1]", id="documentation"),
    pytest.param("[2600::5efe:10.0.0.1]", id="ISATAP"),
    pytest.param("2130706433", id="decimal"),
    pytest.param("0x7f000001", id="hexadecimal"),
    pytest.param("0x7f.1", id="short hexadecimal"),
    pytest.param("017700000001", id="octal"),
    pytest.param("0177.0.0.1", id="octal part"),
    pytest.param("127.1", id="short"),
    pytest.param("127.0.0.1.", id="with a final dot"),
    pytest.param("１２７.0.0.1", id="full-width digits"),
    pytest.param("127。0。0。1", id="ideographic stops"),
    pytest.param("localhost", id="localhost"),
    pytest.param("LOCALHOST.", id="localhost, shouted, with a dot"),
    pytest.param("a.localhost", id="below localhost"),
    pytest.param("ⓛocalhost", id="localhost with a circled letter"),
    pytest.param("metadata.google.internal", id="metadata by name"),
    pytest.param("redis", id="a single label"),
    pytest.param("localhost.localdomain", id="localhost, as hosts files have it"),
    pytest.param("0", id="zero"),
    pytest.param("[::ffff:7f00:1]", id="mapped, in hexadecimal"),
    pytest.param("[0:0:0:0:0:ffff:127.0.0.1]", id="mapped, written out"),
    pytest.param("[::ffff:0:127.0.0.1]", id="translated"),
    pytest.param("[2002:0a00:0001::]", id="6to4 of a private address"),
    pytest.param("[64:ff9b::10.0.0.1]", id="NAT64 of a private address"),
    pytest.param("①②⑦.⓪.⓪.①", id="enclosed digits"),
    pytest.param("0x7f.0x0.0x0.0x1", id="hexadecimal parts"),
    pytest.param("127.0.1", id="three parts"),
]


@pytest.mark.parametrize("host", INSIDE)
def test_an_address_inside_is_refused_at_the_door(host: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        check_url(f"https://{host}/hook", NOTHING, "webhook.url")

    assert refused.value.field == "webhook.url"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://hooks.example.com/torpor", id="a name"),
        pytest.param("https://1.1.1.1/", id="a public address"),
        pytest.param("https://[2606:4700::1111]:8443/x?y=1", id="a public address 6"),
        pytest.param("https://[64:ff9b::101:101]/", id="NAT64 of a public address"),
        pytest.param("https://bücher.example/", id="an international name"),
    ],
)
def test_a_public_host_may_be_tried(url: str) -> None:
    assert check_url(url, NOTHING, "url").host


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(7, id="a number"),
        pytest.param("", id="nothing"),
        pytest.param("http://hooks.example.com/", id="plain http"),
        pytest.param("file:///etc/passwd", id="a file"),
        pytest.param("gopher://hooks.example.com/", id="gopher"),
        pytest.param("https:///x", id="no host"),
        pytest.param("https://u:p@hooks.example.com/", id="a password"),
        pytest.param("https://hooks.example.com@127.0.0.1/", id="a host that is a user"),
        pytest.param("https://127.0.0.1:443@hooks.example.com/", id="an address that is a user"),
        pytest.param("https://hooks.example.com%2f@127.0.0.1/", id="an encoded slash"),
        pytest.param("https://127.0.0.1%00.example.com/", id="an encoded null"),
        pytest.param("https://127.0.0.1%2eexample.com/", id="an encoded stop"),
        pytest.param("https://1.1.1.1 &@2.2.2.2# @3.3.3.3/", id="three hosts"),
        pytest.param("https://hooks.example.com\\@127.0.0.1/", id="a backslash"),
        pytest.param("https://[::1", id="half a bracket"),
        pytest.param("https://hooks.example.com:99999/", id="no port"),
        pytest.param("https://hooks.example.com/\r\nx: y", id="a line break"),
        pytest.param("https://a..b.example/", id="an empty label"),
        pytest.param("https://" + "a" * 3000, id="too long"),
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url: object) -> None:
    with pytest.raises(InvalidJob):
        check_url(url, NOTHING, "url")


@pytest.mark.parametrize(
    "entry",
    ["127.0.0.0/8", "127.0.0.1"],
    ids=["a network", "an address"],
)
def test_a_listed_network_may_be_reached_even_without_tls(entry: str) -> None:
    target = check_url("http://127.0.0.1:9/hook", AllowList.parse([entry]), "url")

    assert target.address == ip_address("127.0.0.1")


def test_a_listed_name_may_resolve_to_anything() -> None:
    allowed = AllowList.parse(["*.corp.example"])

    assert may_dial("hooks.corp.example", ip_address("10.1.2.3"), allowed)
    assert not may_dial("hooks.other.example", ip_address("10.1.2.3"), allowed)


def test_a_listed_network_opens_no_other() -> None:
    allowed = AllowList.parse(["10.1.0.0/16"])

    assert not may_dial("a.example", ip_address("10.2.0.1"), allowed)


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "not a host", "0x7f.1", ""])
def test_an_entry_that_means_nothing_is_refused_at_start(entry: str) -> None:
    with pytest.raises(ValueError, match="is no network and no host"):
        AllowList.parse([entry])


@given(st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_every_embedding_of_a_private_address_is_refused(address: object) -> None:
    low = int(address)  # type: ignore[call-overload]

    for embedded in (0xFFFF << 32 | low, 0x64FF9B << 96 | low, 0x2002 << 112 | low << 80, low):
        assert refusal(ip_address(embedded.to_bytes(16)))


@given(st.ip_addresses())
def test_nothing_that_python_calls_inside_gets_past(address: object) -> None:
    is_inside = (
        address.is_private  # type: ignore[attr-defined]
        or address.is_loopback  # type: ignore[attr-defined]
        or address.is_link_local  # type: ignore[attr-defined]
        or address.is_multicast  # type: ignore[attr-defined]
        or address.is_reserved  # type: ignore[attr-defined]
        or address.is_unspecified  # type: ignore[attr-defined]
    )
    is_nat64 = address in ip_network("64:ff9b::/96")  # judged by what it embeds

    assert not is_inside or is_nat64 or refusal(address)  # type: ignore[arg-type]
