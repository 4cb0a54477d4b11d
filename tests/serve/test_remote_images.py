"""Pictures by URL come from the hosts that are listed, over connections to public addresses alone, or not at all."""

import asyncio
import ssl

import pytest
from origin import CERTIFICATE, COULD_NOT, PUBLIC, URL, Names, Origin, answer, fetch, redirect, refusal, serving

from slimdeploy.config_file import parse_config
from slimdeploy.errors import ConfigError
from slimdeploy.serve.remote_images import SystemResolver

NOT_LISTED = (
    "'picture' is not at one of the hosts from which this server fetches pictures; send the picture itself, as a "
    "data: URL"
)


def of_pictures_example() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        (URL, "pictures.example", 80),
        ("HTTP://PICTURES.EXAMPLE/a.png", "pictures.example", 80),
        ("http://pictures.example:80/a.png#part", "pictures.example", 80),
        ("http://one.cdn.example/a.png", "one.cdn.example", 80),
        ("http://a.b.cdn.example/a.png", "a.b.cdn.example", 80),
        ("http://odd.example:8443/a.png", "odd.example:8443", 8443),
        ("http://münchen.example/a.png", "xn--mnchen-3ya.example", 80),
    ],
)
def test_a_listed_host_is_asked_by_the_address_that_was_judged(url: str, host: str, port: int) -> None:
    origin, names = serving(), Names()
    assert fetch(url, origin, names) == b"a picture"
    assert origin.connected == [(PUBLIC, port)]
    assert names.asked == [host.partition(":")[0]]
    assert f"\r\nHost: {host}\r\n" in origin.asked[0]


def test_a_request_says_nothing_of_the_client_and_asks_for_no_compression() -> None:
    origin = serving()
    fetch(URL, origin)
    head = origin.asked[0].lower().splitlines()
    assert {line.partition(":")[0] for line in head[1:] if line} == {
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
    }
    assert "accept-encoding: identity" in head


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        "http://cdn.example/a.png",
        "http://evilcdn.example/a.png",
        "http://pictures.example.evil.example/a.png",
        "http://pictures.example./a.png",
        "http://pictures.example:8080/a.png",
        "http://pictures.example:443/a.png",
        "http://pictures.example:0/a.png",
        "http://pictures.example:65616/a.png",  # 80 in 16 bits
        "http://odd.example/a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
        "http://017700000001/a.png",
        "http://0x7f000001/a.png",
        "http://0x7f.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://[fe80::1%25eth0]/a.png",
        "http://１２７.0.0.1/a.png",
        "http://localhost/a.png",
        "http://pictures.example\\@127.0.0.1/a.png",
        "http://127.0.0.1\\@pictures.example/a.png",
        "http:\\\\pictures.example/a.png",
        "http://127.0.0.1@pictures.example/a.png",
        "http://user:secret@pictures.example/a.png",
        "http://pictures.example@127.0.0.1/a.png",
        "http://127.0.0.1#@pictures.example/a.png",
        "http://127.0.0.1?@pictures.example/a.png",
        "http://127.0.0.1;.cdn.example/a.png",
        "http://127.0.0.1%2f.cdn.example/a.png",
        "http://127.0.0.1%00.cdn.example/a.png",
        "http://.cdn.example/a.png",
        "http://a..cdn.example/a.png",
        "http://%70ictures.example/a.png",
        "http://pictures.example/a.png\r\nX-Evil: 1",
        "http://pictures.example\t/a.png",
        "http://pictures .example/a.png",
        " http://pictures.example/a.png",
        "http://pictures.example/a.png\u2028",
        "http:///a.png",
        "http:pictures.example/a.png",
        "http:/pictures.example/a.png",
        "//pictures.example/a.png",
        "file:///etc/passwd",
        "file://pictures.example/etc/passwd",
        "ftp://pictures.example/a.png",
        "gopher://pictures.example:80/_GET",
        "http+unix://pictures.example/a.png",
        "http://[",
        "http://pictures.example:port/a.png",
        "http://pictures.example/" + "a" * 100_000,
        "",
    ],
)
def test_other_hosts_and_whatever_could_be_read_two_ways_are_refused_before_a_name_is_looked_up(url: str) -> None:
    origin, names = serving(), Names()
    assert refusal(url, origin, names) == NOT_LISTED
    assert (origin.connected, names.asked) == ([], [])


def test_a_name_that_changes_between_look_ups_is_looked_up_once() -> None:
    origin, names = serving(), Names({"pictures.example": [[PUBLIC], ["127.0.0.1"]]})
    assert fetch(URL, origin, names) == b"a picture"
    assert names.asked == ["pictures.example"]
    assert origin.connected == [(PUBLIC, 80)]


def test_a_name_that_has_changed_when_a_redirect_comes_back_to_it_is_judged_again() -> None:
    origin, names = serving(again=redirect("/a.png")), Names({"pictures.example": [[PUBLIC], ["127.0.0.1"]]})
    assert refusal("http://pictures.example/again", origin, names) == COULD_NOT
    assert origin.connected == [(PUBLIC, 80)]


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    origin = Origin({"/a.png": answer(b"a picture")}, unreachable=["2606:4700::1"])
    assert fetch(URL, origin, Names({"pictures.example": [["2606:4700::1", PUBLIC]]})) == b"a picture"
    assert origin.connected == [("2606:4700::1", 80), (PUBLIC, 80)]


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize(
    "location", ["/a.png", "a.png", "//one.cdn.example/a.png", "http://odd.example:8443/a.png", "?x/../a.png"]
)
def test_redirects_to_listed_hosts_are_followed(status: str, location: str) -> None:
    origin = Origin(
        {
            "/a.png": answer(b"a picture"),
            "/away": redirect(location, status),
            "/away?x/../a.png": answer(b"a picture"),
        }
    )
    assert fetch("http://pictures.example/away", origin) == b"a picture"


@pytest.mark.parametrize(
    "location",
    [
        "http://other.example/a.png",
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://pictures.example:22/a.png",
        "//127.0.0.1/a.png",
        "\\\\127.0.0.1/a.png",
        "/\\127.0.0.1/a.png",
        "http://user@pictures.example/a.png",
        "http://127.0.0.1\\@pictures.example/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,aGVsbG8=",
        "http://[",
        "/a.png ?",
    ],
)
def test_redirects_elsewhere_are_not_followed(location: str) -> None:
    origin, names = serving(away=redirect(location)), Names()
    assert refusal("http://pictures.example/away", origin, names) == COULD_NOT
    assert names.asked == ["pictures.example"]
    assert origin.connected == [(PUBLIC, 80)]


def test_a_redirect_to_a_listed_name_with_an_address_that_is_not_public_is_not_followed() -> None:
    origin, names = serving(away=redirect("http://in.cdn.example/a.png")), Names({"in.cdn.example": [["10.0.0.1"]]})
    assert refusal("http://pictures.example/away", origin, names) == COULD_NOT
    assert origin.connected == [(PUBLIC, 80)]


def test_three_redirects_are_followed_and_no_more() -> None:
    origin = serving(one=redirect("/two"), two=redirect("/three"), three=redirect("/a.png"), zero=redirect("/one"))
    assert fetch("http://pictures.example/one", origin) == b"a picture"
    assert refusal("http://pictures.example/zero", origin) == COULD_NOT
    loop = serving(loop=redirect("/loop"))
    assert refusal("http://pictures.example/loop", loop) == COULD_NOT
    assert len(loop.asked) == 4


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1"]])
def test_names_that_are_unknown_and_names_of_inner_machines_look_the_same(addresses: list[str]) -> None:
    assert refusal(URL, serving(), Names({"pictures.example": [addresses]})) == COULD_NOT


def test_tls_holds_a_host_to_its_own_name() -> None:
    tls = of_pictures_example()
    assert fetch("https://pictures.example/a.png", serving(), tls=tls) == b"a picture"
    origin = serving()
    assert refusal("https://one.cdn.example/a.png", origin, tls=tls) == COULD_NOT
    assert (origin.connected, origin.asked) == ([(PUBLIC, 443)], [])


def test_settings_of_the_environment_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    origin = serving()
    assert fetch(URL, origin) == b"a picture"
    assert origin.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("http://pictures.example", "is no host|has no port"),
        ("pictures.example/a", "is no host"),
        ("*", "is no host"),
        ("*.example", "is no host"),
        ("a.*.example", "is no host"),
        ("münchen.example", "letters beyond ASCII as 'xn--...'"),
        ("pictures.example.", "is no host"),
        ("user@pictures.example", "is no host"),
        ("pictures.example:", "has no port"),
        ("pictures.example:0", "has no port"),
        ("pictures.example:65536", "has no port"),
        ("127.0.0.1", "is an address"),
        ("0x7f.1", "is an address"),
        ("2130706433", "is an address"),
        ("[::1]", "is no host"),
        ("", "is no host"),
    ],
)
def test_an_entry_that_is_no_host_is_refused_with_the_settings(entry: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"serve\.image_hosts\.0: .*({sentence})"):
        parse_config({"serve": {"image_hosts": [entry]}})


def test_hosts_are_listed_in_any_case() -> None:
    assert parse_config({"serve": {"image_hosts": ["Pictures.Example:8080"]}}).serve.image_hosts == (
        "pictures.example:8080",
    )


def test_the_systems_resolver_gives_every_address_of_a_name() -> None:
    assert "127.0.0.1" in asyncio.run(SystemResolver()("localhost", 80))
