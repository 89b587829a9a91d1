"""The `anthropic` client, unmodified, over TLS: it sends `x-api-key`."""

import ssl

import anthropic
import httpx
import pytest

from conftest import PROMPT, TOKEN
from receipt import verify

ASK = [{"role": "user", "content": PROMPT}]


def client_of(gate, key=None, **how):
    # Its newest versions bring a client class of their own, which takes what httpx's takes.
    web = anthropic.DefaultHttpxClient(verify=ssl.create_default_context(cafile=gate.ca), timeout=20, **how)
    return anthropic.Anthropic(base_url=gate.url, api_key=key or gate.app, http_client=web, max_retries=0)


@pytest.fixture(scope="module")
def client(gate):
    with client_of(gate) as client:
        yield client


def test_a_message_is_answered_by_a_real_server_under_the_callers_name_for_the_model(client, gate):
    raw = client.messages.with_raw_response.create(model="claude", max_tokens=8, messages=ASK)
    answer = raw.parse()
    assert answer.model == "claude" and len(answer.content[0].text) == 8 and answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 8
    receipt, *_ = verify(raw.headers, raw.http_response.content, gate.log)
    assert answer._request_id == receipt["id"]


def test_a_stream_of_text_ends_with_a_final_message(client):
    with client.messages.stream(model="claude", max_tokens=8, messages=ASK) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) == 8 and final.content[0].text == "".join(pieces)
    assert final.model == "claude" and final.usage.output_tokens == 8 and final.stop_reason == "max_tokens"


def test_events_of_a_stream_come_in_their_order(client):
    kinds = [event.type for event in client.messages.create(model="claude", max_tokens=3, messages=ASK, stream=True)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_delta") == 3


def test_a_system_prompt_and_http_2(gate):
    with client_of(gate, http2=True) as client:
        assert client.messages.create(model="claude", max_tokens=2, system="be brief", messages=ASK).usage.output_tokens == 2


def test_the_upstream_gets_the_gateways_key_and_the_protocols_headers(client, gate, scripted):
    with pytest.raises(anthropic.APIStatusError):
        client.messages.create(model="scripted-claude", max_tokens=2, messages=ASK, metadata={"user_id": "status-500"},
                               extra_headers={"anthropic-beta": "some-beta"})
    sent = scripted.requests[-1]
    got = {name.lower(): value for name, value in sent["headers"].items()}
    assert sent["path"] == "/v1/messages" and got["x-api-key"] == TOKEN
    assert got["anthropic-version"] and got["anthropic-beta"] == "some-beta"
    assert "authorization" not in got and gate.app not in str(got)


@pytest.mark.parametrize(
    ("how", "error", "kind"),
    [
        ({"key": "nonsense"}, anthropic.AuthenticationError, "authentication_error"),
        ({"model": "no-such"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": "canary-not-a-list"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"script": "status-400"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"script": "status-500"}, anthropic.InternalServerError, "api_error"),
        ({"script": "status-529"}, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_errors_are_the_ones_that_the_client_knows(gate, how, error, kind):
    model = "scripted-claude" if "script" in how else how.get("model", "claude")
    with client_of(gate, how.get("key")) as client, pytest.raises(error) as caught:
        client.messages.create(
            model=model, max_tokens=2, messages=how.get("messages", ASK), metadata={"user_id": how.get("script", "x")})
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["message"]
    assert body["error"]["type"] == kind
    assert kind != "overloaded_error" or caught.value.response.headers["retry-after"] == "7"
    assert "canary-not" not in str(body)
    assert caught.value.response.headers["portcullis-reason"]


def test_models_of_the_other_protocol_are_not_reached(client):
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model="chat", max_tokens=2, messages=ASK)
    assert caught.value.status_code in (400, 404)
