"""A server with keys answers to who has one, on every route but three, and tells nobody anything of them."""

import logging
from pathlib import Path

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import user
from test_app_refusals import refused

from slimdeploy.config import ServeConfig
from slimdeploy.config_file import load_config
from slimdeploy.errors import ServeError
from slimdeploy.serve.keys import VARIABLE, load_keys
from slimdeploy.serve.server import _warn_where_open

ANN, BEN = "a" * 16, "sk-" + "9" * 45
BODY = {"model": "echo", "messages": user("one two")}
GUARDED = [
    "/v1/models",
    "/v1/models/echo",
    "/health/",
    "/ready/x",
    "//health",
    "/health/../v1/models",
    "/%2e/v1/models",
]


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    file = tmp_path / "keys.txt"
    file.write_text(f"# who may ask\n\nann: {ANN}\nben:{BEN}\n")
    return ServeConfig(api_keys_file=str(file))


@pytest.fixture
def guarded(serve: Serve, config: ServeConfig) -> str:
    return serve(EchoEngine(), config)


@pytest.mark.parametrize("key", [ANN, BEN])
def test_who_has_a_key_is_answered(guarded: str, key: str) -> None:
    client = openai.OpenAI(base_url=f"{guarded}/v1", api_key=key, max_retries=0)
    assert [model.id for model in client.models.list()] == ["echo"]
    answer = client.chat.completions.create(model="echo", messages=user("one two"))
    assert answer.choices[0].message.content == "one two"


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        "Bearer",
        f"Bearer {ANN}x",
        f"Bearer {ANN[:-1]}",
        ANN,
        f"Basic {ANN}",
        f"Bearer {ANN},{BEN}",
        "Bearer é",
    ],
)
def test_who_has_none_is_refused_before_the_body_is_read(guarded: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent.encode()}
    for response in (
        httpx.post(f"{guarded}/v1/chat/completions", json=BODY, headers=headers),
        httpx.post(f"{guarded}/v1/chat/completions", content=b"no JSON", headers=headers),
        httpx.get(f"{guarded}/v1/models", headers=headers),
        httpx.get(f"{guarded}/nowhere", headers=headers),
    ):
        error = refused(response, 401)
        assert error["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert ANN not in response.text


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_three_routes_are_open(guarded: str, path: str) -> None:
    assert httpx.get(f"{guarded}{path}").status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_no_other_way_to_write_a_path_gets_round_the_key(guarded: str, path: str) -> None:
    host, _, port = guarded.removeprefix("http://").partition(":")
    with httpx.Client() as http:
        request = http.build_request("GET", guarded)
        request.url = httpx.URL(scheme="http", host=host, port=int(port), raw_path=path.encode())
        refused(http.send(request), 401)


def test_a_wrong_key_is_told_so_by_the_client_library(guarded: str) -> None:
    client = openai.OpenAI(base_url=f"{guarded}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="asks for an API key"):
        client.models.list()


def test_without_keys_everybody_is_answered(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200


def test_keys_may_stand_in_the_environment(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"cat:{'c' * 20}, dan:{'d' * 20},")
    keys = load_keys(config)
    assert [keys.name_of(f"Bearer {key}") for key in (ANN, BEN, "c" * 20, "d" * 20)] == ["ann", "ben", "cat", "dan"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("ann:short", r"keys.txt:1 is not NAME:KEY with a key of 16 to 512 characters"),
        (f"ann:{ANN}\n{BEN}", r"keys.txt:2 is not NAME:KEY"),
        (f"ann b:{ANN}", r"keys.txt:1 is not NAME:KEY"),
        (f"ann:{ANN} x", r"keys.txt:1 is not NAME:KEY"),
        (f"ann:{ANN}\nann:{BEN}", r"keys.txt:2 names 'ann' again"),
        ("# none yet", r"keys.txt' holds no key"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_shown(lines: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(lines)
    with pytest.raises(ServeError, match=sentence) as caught:
        load_keys(ServeConfig(api_keys_file=str(file)))
    assert ANN not in str(caught.value)
    assert BEN not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"api_keys_file = '.*gone' cannot be read"):
        load_keys(ServeConfig(api_keys_file=str(tmp_path / "gone")))


def test_the_file_is_found_from_where_its_settings_are(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text('[serve]\napi_keys_file = "keys.txt"')
    assert load_config(tmp_path / "deploy.toml").serve.api_keys_file == str(tmp_path / "keys.txt")


def test_a_server_of_a_network_without_keys_warns(config: ServeConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "slimdeploy")
    _warn_where_open(ServeConfig())
    _warn_where_open(config.model_copy(update={"host": "0.0.0.0"}))
    assert not caplog.records
    _warn_where_open(ServeConfig(host="0.0.0.0"))
    assert "everybody there is answered: set serve.api_keys_file" in caplog.text
