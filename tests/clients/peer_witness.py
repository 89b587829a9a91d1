"""A witness that nobody here wrote: witness-log's `WitnessService` behind HTTP.

    python tests/clients/peer_witness.py ORIGIN VKEY

prints `URL VKEY` of a witness that knows the log of that origin and key, and serves until its standard input ends.
"""

import http.server
import sys
import threading

import witness_log

NAME = "peer.example/w1"


class PeerWitness:
    """`handled` has the status of each request, in order."""

    def __init__(self, logs, state=None):
        service = witness_log.WitnessService.new(NAME, bytes(range(32)), state)
        for origin, vkey in logs:
            assert service.add_log(origin, vkey)
        handled = self.handled = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, kind, text):
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path != "/add-checkpoint":
                    return self.answer(404, "text/plain", "")
                status, kind, text = service.handle_add_checkpoint_http(body)
                handled.append(status)
                self.answer(status, kind, text)

            def do_GET(self):
                self.answer(404, "text/plain", "")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url, self.vkey = f"http://127.0.0.1:{self.server.server_port}", service.vkey()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    peer = PeerWitness([(sys.argv[1], sys.argv[2])])
    print(peer.url, peer.vkey, flush=True)
    sys.stdin.read()
    print(peer.handled)
