"""The `openai` client, unmodified, over TLS."""

import asyncio
import json
import ssl

import httpx
import openai
import pytest

from conftest import PROMPT, TOKEN
from gate import eventually
from receipt import parts, verify

ASK = [{"role": "user", "content": PROMPT}]


def http(gate, **how):
    return httpx.Client(verify=ssl.create_default_context(cafile=gate.ca), timeout=20, **how)


def client_of(gate, key=None, **how):
    return openai.OpenAI(base_url=gate.url + "/v1", api_key=key or gate.app, http_client=http(gate, **how), max_retries=0)


@pytest.fixture(scope="module")
def client(gate):
    with client_of(gate) as client:
        yield client


def test_a_chat_is_answered_by_a_real_server_under_the_callers_name_for_the_model(client):
    answer = client.chat.completions.create(model="chat", messages=ASK, max_tokens=8, seed=1)
    assert answer.model == "chat"
    assert answer.object == "chat.completion"
    assert len(answer.choices[0].message.content) == 8 and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8 and answer.usage.prompt_tokens > 10


def test_an_answer_and_an_error_tell_the_receipts_id_as_the_request_they_are_of(client):
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASK, max_tokens=1)
    assert raw.parse()._request_id == raw.request_id and f'id="{raw.request_id}"' in raw.headers["provenance-receipt"]
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nobody's", messages=ASK)
    assert f'id="{refused.value.request_id}"' in refused.value.response.headers["provenance-receipt"]


def test_a_stream_comes_in_chunks_under_the_callers_name_and_without_the_usage_that_was_not_asked_for(client):
    chunks = list(client.chat.completions.create(model="chat", messages=ASK, max_tokens=8, stream=True))
    assert len(chunks) >= 9
    assert {chunk.model for chunk in chunks} == {"chat"}
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == 8


def test_a_stream_ends_with_usage_where_it_was_asked_for(client):
    how = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(model="chat", messages=ASK, max_tokens=5, **how)
    assert last.choices == [] and last.usage.completion_tokens == 5 and last.model == "chat"
    assert all(chunk.usage is None for chunk in chunks)


def test_several_answers_at_once(client):
    answer = client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_log_probabilities_come_rounded_where_detection_enforces(client):
    answer = client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert len(told) == 4
    for token in told:
        assert len(token.top_logprobs) == 3
        for number in [token.logprob] + [other.logprob for other in token.top_logprobs]:
            assert round(number, 2) == number


def test_log_probabilities_come_rounded_in_streams_too(client):
    stream = client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2, stream=True)
    told = [token for chunk in stream if chunk.choices and chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert len(told) == 4 and all(round(token.logprob, 2) == token.logprob for token in told)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_left_out_where_the_logits_are_biased(client, stream):
    how = {"logprobs": True, "top_logprobs": 2, "logit_bias": {"300": 5}, "stream": stream}
    answer = client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, **how)
    for part in list(answer) if stream else [answer]:
        for choice in part.choices:
            assert choice.logprobs is None, "log-probabilities and a bias together tell the full logits"


def test_more_log_probabilities_than_the_rules_allow_are_refused(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, logprobs=True, top_logprobs=20)


def test_without_enforcement_log_probabilities_come_as_they_are(client):
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2)
    assert any(round(token.logprob, 2) != token.logprob for token in answer.choices[0].logprobs.content)


def test_tools_and_fields_that_the_gateway_does_not_know_reach_the_server_untouched(client, scripted):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}]
    more = {"a_new_field": {"deep": [1, 2.50, None, "é"]}, "top_k": 3}
    client.chat.completions.create(model="scripted", messages=ASK, tools=tools, extra_body=more)
    got = json.loads(scripted.requests[-1]["body"])
    assert got["tools"] == tools and got["a_new_field"] == more["a_new_field"] and got["top_k"] == 3
    assert got["model"] == "theirs" and got["messages"] == ASK


def test_completions_plain_and_as_a_stream(client):
    answer = client.completions.create(model="chat", prompt=PROMPT, max_tokens=6)
    assert answer.model == "chat" and len(answer.choices[0].text) == 6
    chunks = list(client.completions.create(model="chat", prompt=PROMPT, max_tokens=6, stream=True))
    assert {chunk.model for chunk in chunks} == {"chat"}
    assert len("".join(chunk.choices[0].text for chunk in chunks)) == 6


def test_embeddings(client):
    answer = client.embeddings.create(model="chat", input=[PROMPT, "another"])
    assert answer.model == "chat" and [len(one.embedding) for one in answer.data] == [32, 32]
    assert answer.usage.prompt_tokens > 10


def test_responses_plain_and_as_a_stream(client):
    answer = client.responses.create(model="chat", input=PROMPT, max_output_tokens=6)
    assert answer.model == "chat" and len(answer.output_text) == 6 and answer.usage.output_tokens == 6
    events = list(client.responses.create(model="chat", input=PROMPT, max_output_tokens=6, stream=True))
    assert len([event for event in events if event.type == "response.output_text.delta"]) == 6
    assert events[-1].type == "response.completed" and events[-1].response.model == "chat"
    assert events[-1].response.usage.output_tokens == 6


def test_a_caller_sees_the_models_that_it_may_use_and_no_other(gate, client):
    mine = {model.id for model in client.models.list()}
    assert {"chat", "claude", "digits", "iris", "scripted"} <= mine
    with client_of(gate, gate.other) as other:
        assert {model.id for model in other.models.list()} == {"digits"}
        with pytest.raises(openai.NotFoundError) as not_theirs:
            other.models.retrieve("chat")
        with pytest.raises(openai.NotFoundError) as nowhere:
            other.models.retrieve("no-such")
    assert client.models.retrieve("chat").id == "chat"
    assert not_theirs.value.body == nowhere.value.body


def refused(error, status, code, kind=None):
    assert error.status_code == status and error.code == code
    assert error.response.headers["portcullis-reason"] == code
    assert error.body["message"] and (kind is None or error.type == kind)
    return error


def test_no_credential_or_a_wrong_one_is_an_authentication_error(gate):
    for key in ("pcl_" + "A" * 32, "sk-nonsense"):
        with client_of(gate, key) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="chat", messages=ASK)
        error = caught.value
        assert error.status_code == 401 and error.code.startswith("authenticate.") and key not in str(error)


def test_a_model_of_others_and_one_that_is_not_look_alike(gate):
    said = []
    with client_of(gate, gate.other) as client:
        for model in ("chat", "no-such-model"):
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model=model, messages=ASK)
            said.append(refused(caught.value, 404, "authorize.denied").body)
    assert said[0] == said[1]


def test_what_breaks_the_protocol_is_a_bad_request_that_says_where(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages="canary-not-a-list")
    error = refused(caught.value, 400, "check.shape", "invalid_request_error")
    assert error.param and "canary" not in str(error.body)


def test_strict_models_refuse_unknown_fields_and_too_many_tokens(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=ASK, extra_body={"a_new_field": 1})
    refused(caught.value, 400, "check.shape")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=ASK, max_tokens=65)
    refused(caught.value, 400, "check.max_tokens")
    assert client.chat.completions.create(model="small", messages=ASK, max_tokens=64).model == "small"


def test_a_body_past_the_models_cap_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x" * 4000}])
    refused(caught.value, 413, "check.too_large")


def test_a_body_past_the_houses_cap_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "x" * (1 << 20)}])
    assert caught.value.status_code == 413 and caught.value.code == "check.too_large"


def test_a_limit_that_is_reached_is_a_rate_limit_error_that_says_when_to_come_back(client):
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model="tight", messages=ASK)
        assert raw.headers["ratelimit-policy"] and raw.headers["ratelimit"]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tight", messages=ASK)
    error = refused(caught.value, 429, "budget.requests")
    assert 1 <= int(error.response.headers["retry-after"]) <= 31
    # Another caller of the same tenant has a budget of its own, and the client's own retries come back to it in time.


def test_an_upstream_that_is_down_is_unavailable(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="down", messages=ASK)
    refused(caught.value, 503, "infer.unavailable")
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("status-400", 400, "infer.refused"),
        ("status-422", 422, "infer.refused"),
        ("status-401", 502, "infer.upstream"),
        ("status-404", 502, "infer.upstream"),
        ("status-429", 503, "infer.unavailable"),
        ("status-500", 502, "infer.upstream"),
        ("status-503", 503, "infer.unavailable"),
        ("status-302", 502, "infer.upstream"),
        ("html", 502, "infer.upstream"),
        ("gzip", 502, "infer.upstream"),
        ("broken-json", 502, "infer.upstream"),
    ],
)
def test_an_upstream_that_errs(client, script, status, code):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="scripted", messages=ASK, user=script)
    error = refused(caught.value, status, code)
    # Only where the upstream says that the request is at fault does the caller hear its words.
    assert ("canary-upstream" in error.response.text) == (code == "infer.refused")
    assert "canary-upstream" not in str(error.response.headers)
    assert error.response.headers.get("retry-after") == ("7" if code == "infer.unavailable" else None)


def test_the_upstream_sees_the_gateways_credential_and_nothing_of_the_callers(client, gate, scripted):
    client.chat.completions.create(model="scripted", messages=ASK, extra_headers={"x-forwarded-for": "1.2.3.4", "cookie": "a=b"})
    got = {name.lower(): value for name, value in scripted.requests[-1]["headers"].items()}
    assert got["authorization"] == f"Bearer {TOKEN}"
    assert not {"cookie", "x-forwarded-for", "user-agent", "x-api-key", "x-stainless-lang"} & set(got)
    assert gate.app not in str(got)


def test_the_callers_see_no_header_of_the_upstream(client):
    raw = client.chat.completions.with_raw_response.create(model="scripted", messages=ASK, user="headers")
    assert "canary-upstream" not in str(raw.headers) and "set-cookie" not in raw.headers


def test_an_answer_is_the_upstreams_byte_for_byte_but_for_the_name(client):
    same = client.chat.completions.with_raw_response.create(model="theirs", messages=ASK).content
    assert b'"odd":1.50E+2' in same and b"12345678901234567890123" in same and b"caf\\u00e9 \xc3\xa9" in same
    renamed = client.chat.completions.with_raw_response.create(model="scripted", messages=ASK).content
    assert renamed == same.replace(b'"theirs"', b'"scripted"')


def stream_of(client, script, model="scripted", **how):
    return client.chat.completions.create(model=model, messages=ASK, stream=True, user=script, **how)


@pytest.mark.parametrize("model", ["scripted", "theirs"])
def test_usage_that_the_gateway_asked_for_itself_does_not_show(client, scripted, model):
    for script in ("whole", "usage-null", "usage-unasked"):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=ASK, stream=True, user=script).http_response
        text = raw.read().decode()
        assert text.endswith("data: [DONE]\n\n") and "usage" not in text, script
        assert json.loads(scripted.requests[-1]["body"])["stream_options"] == {"include_usage": True}
        assert text.count(f'"model": "{model}"') + text.count(f'"model":"{model}"') == 3


def test_usage_that_the_caller_asked_for_comes_as_the_upstream_sends_it(client):
    *chunks, last = stream_of(client, "usage-null", stream_options={"include_usage": True})
    assert len(chunks) == 3 and last.usage.total_tokens == 10 and last.choices == []


def test_tokens_of_a_stream_are_counted_as_the_upstream_tells_them(client, gate):
    before = gate.metric("portcullis_tokens_total") or 0
    list(stream_of(client, "usage-null"))
    eventually(lambda: gate.metric("portcullis_tokens_total") - before >= 10)


def test_chunks_arrive_while_the_upstream_still_thinks(client, scripted):
    scripted.go_on.clear()
    with stream_of(client, "held") as stream:
        chunks = iter(stream)
        first = [next(chunks).choices[0].delta.content for _ in range(3)]
        assert first == ["one ", "two ", "three"]
        scripted.go_on.set()
        assert [chunk.choices[0].delta.content for chunk in chunks] == [" and on"]


def test_a_caller_who_leaves_cancels_the_call(client, gate, scripted):
    scripted.left.clear()
    stream = stream_of(client, "slow")
    receipt = parts(stream.response.headers["provenance-receipt"])
    assert receipt["state"] == "open"
    next(iter(stream))
    stream.close()
    assert scripted.left.wait(5), "the upstream was not told that nobody reads any more"
    eventually(lambda: any(entry["id"] == receipt["id"] and entry["kind"] == "aborted" for entry in gate.entries()))


def test_an_upstream_that_dies_in_a_stream_breaks_the_callers_stream(client, gate):
    stream = stream_of(client, "dies")
    receipt = parts(stream.response.headers["provenance-receipt"])
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, openai.APIError)):
        list(stream)
    eventually(lambda: any(entry["id"] == receipt["id"] and entry["kind"] == "aborted" for entry in gate.entries()))


def test_http_2(gate):
    with client_of(gate, http2=True) as client:
        raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASK, max_tokens=4)
        assert raw.http_response.http_version == "HTTP/2" and raw.parse().model == "chat"
        verify(raw.headers, raw.content, gate.log)
        chunks = list(client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, stream=True))
        assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == 4
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="no-such", messages=ASK)


@pytest.mark.parametrize("http2", [False, True])
def test_the_asynchronous_client_many_at_once(gate, http2):
    async def ask():
        web = httpx.AsyncClient(verify=ssl.create_default_context(cafile=gate.ca), timeout=30, http2=http2)
        async with openai.AsyncOpenAI(base_url=gate.url + "/v1", api_key=gate.app, http_client=web, max_retries=0) as client:
            whole = [client.chat.completions.create(model="chat", messages=ASK, max_tokens=4) for _ in range(8)]

            async def streamed():
                stream = await client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*whole, *[streamed() for _ in range(8)])

    answers = asyncio.run(ask())
    assert all(answer.model == "chat" for answer in answers[:8]) and all(len(text) == 4 for text in answers[8:])
