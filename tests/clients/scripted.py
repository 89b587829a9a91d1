"""A model server that does as it is told, for what no well-behaved one can be made to show.

The request says which script to follow: `user` (OpenAI), `metadata.user_id` (Anthropic) or `script` (raw).
"""

import asyncio
import base64
import gzip
import json
import threading

from aiohttp import web

CREATED = 1_700_000_000


class Scripted:
    """Listens on a port of 127.0.0.1 until `close`; remembers every request, and which streams their reader left."""

    def __init__(self):
        self.requests, self.left, self.go_on = [], threading.Event(), threading.Event()
        self.loop, ready = asyncio.new_event_loop(), threading.Event()

        async def listen():
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self.answer)
            self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = "http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1]
            ready.set()

        def work():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(listen())
            self.loop.run_forever()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def close(self):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def answer(self, request):
        body = await request.read()
        asked = json.loads(body) if body else {}
        self.requests.append({"method": request.method, "path": request.path_qs, "headers": dict(request.headers), "body": body})
        script = asked.get("user") or asked.get("script") or (asked.get("metadata") or {}).get("user_id") or "whole"
        if script.startswith("status-"):
            status = int(script.removeprefix("status-"))
            where = {"location": "http://127.0.0.1:1/elsewhere"} if status in (301, 302, 307, 308) else {}
            again = {"retry-after": "7"} if status in (429, 503, 529) else {}
            error = {"error": {"message": f"canary-upstream {status}", "type": "upstream_error"}}
            return web.json_response(error, status=status, headers=where | again | {"x-upstream-secret": "canary-upstream"})
        if script == "html":
            return web.Response(text="<html>canary-upstream</html>", content_type="text/html")
        if script == "broken-json":
            return web.Response(body=b'{"id": "x", "choices": [', content_type="application/json")
        if script == "gzip":
            return web.Response(body=gzip.compress(whole(asked)), content_type="application/json", headers={"content-encoding": "gzip"})
        if script == "headers":
            more = {"set-cookie": "a=b", "server": "canary-upstream", "x-upstream-secret": "canary-upstream", "via": "1.1 canary-upstream"}
            return web.Response(body=whole(asked), content_type="application/json", headers=more)
        if script.startswith("recite") and not asked.get("stream"):
            return web.json_response(recited(request.path, asked))
        if request.path == "/raw":
            return web.json_response({"echo": asked, "method": request.method})
        if asked.get("stream"):
            return await self.stream(request, script, asked)
        return web.Response(body=whole(asked), content_type="application/json")

    async def stream(self, request, script, asked):
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)

        # Events may end their lines in three ways, and comments may stand between them.
        end = {"crlf": b"\r\n", "cr": b"\r"}.get(script, b"\n")

        async def say(document):
            await answer.write(b"data: " + json.dumps(document).encode() + 2 * end)
            if script in ("crlf", "cr"):
                await answer.write(b": ping" + 2 * end)

        def chunk(text, **more):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            return {"id": "c", "object": "chat.completion.chunk", "created": CREATED, "model": asked["model"], "choices": [choice]} | more

        usage = usage_of(script)
        null = {"usage": None} if script == "usage-null" else {}
        try:
            for text in pieces(asked) if script.startswith("recite") else ("one ", "two ", "three"):
                await say(chunk(text, **null))
                if script == "dies" and text == "two ":
                    await asyncio.sleep(0.2)
                    request.transport.abort()
                    return answer
            if script == "slow":
                for number in range(400):
                    await asyncio.sleep(0.05)
                    await say(chunk(f" {number}"))
            if script == "held":
                while not self.go_on.is_set():
                    await asyncio.sleep(0.02)
                await say(chunk(" and on"))
            if (asked.get("stream_options") or {}).get("include_usage") or script == "usage-unasked":
                await say(chunk("", **null) | {"choices": [], "usage": usage})
            await answer.write(b"data: [DONE]" + 2 * end)
            await answer.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return answer


def usage_of(script):
    """What it says the answer used: as a server would whose prompts are short and whose answers are long, where that is asked for."""
    output = 700 if script == "long" else 3
    return {"prompt_tokens": 7, "completion_tokens": output, "total_tokens": 7 + output}


def pieces(asked):
    """The instructions of a request, word by word, and more after them."""
    told = " ".join(message["content"] for message in asked["messages"] if message["role"] in ("system", "developer"))
    if asked.get("user") == "recite-base64":
        told = base64.b64encode(told.encode()).decode()
        return [told[at : at + 7] for at in range(0, len(told), 7)]
    return [word + " " for word in told.split(" ")] + ["and ", "so ", "on."]


def recited(path, asked):
    """A whole answer that says the instructions of its request, in the dialect of its path."""
    if path.endswith("/messages"):
        return {"id": "m", "type": "message", "role": "assistant", "model": asked["model"], "stop_reason": "end_turn", "stop_sequence": None,
                "content": [{"type": "text", "text": asked["system"]}], "usage": {"input_tokens": 7, "output_tokens": 3}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(pieces(asked))}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": CREATED, "model": asked["model"], "choices": [choice]}


def whole(asked):
    """A whole chat answer, with what JSON readers like to spoil: odd spaces, an exponent, a long integer."""
    model = json.dumps(asked.get("model"))
    return (
        b'{"id":"chatcmpl-1", "object": "chat.completion","created":1700000000,\n "model": ' + model.encode() + b', "choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"caf\\u00e9 \xc3\xa9"},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":' + json.dumps(usage_of(asked.get("user"))).encode() + b',"odd":1.50E+2,"big":12345678901234567890123}'
    )
