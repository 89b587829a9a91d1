"""Requests over a bare connection, for what client libraries keep to themselves: trailers, and the very bytes of a body."""

import dataclasses
import json
import socket
import ssl

import h2.config
import h2.connection
import h2.events


@dataclasses.dataclass
class Answer:
    """`lines` are the header lines as they came, names in lower case; `whole` is false where the body broke off."""

    status: int
    lines: list
    body: bytes
    trailers: dict
    whole: bool

    headers = property(lambda self: dict(self.lines))


def connected(gate, protocol):
    context = ssl.create_default_context(cafile=gate.ca)
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", gate.port), 20), server_hostname="127.0.0.1")


def http1(gate, path, body, headers=()):
    """A POST over HTTP/1.1 (RFC 9112); `headers` are pairs."""
    sent = json.dumps(body).encode()
    fields = [("host", gate.authority), ("authorization", f"Bearer {gate.app}"), ("content-type", "application/json"),
              ("content-length", str(len(sent))), ("connection", "close"), *headers]
    with connected(gate, "http/1.1") as tls:
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        tls.sendall(head.encode() + sent)
        file = tls.makefile("rb")
        status = int(file.readline().split()[1])
        lines = field_lines(file)
        names = dict(lines)
        if names.get("transfer-encoding") != "chunked":
            return Answer(status, lines, file.read(), {}, True)
        data = b""
        while True:
            size = file.readline()
            if not size:
                return Answer(status, lines, data, {}, False)
            if int(size, 16) == 0:
                return Answer(status, lines, data, dict(field_lines(file)), True)
            data += file.read(int(size, 16))
            assert file.readline() in (b"\r\n", b"")


def field_lines(file):
    found = []
    while (line := file.readline()) not in (b"\r\n", b""):
        name, value = line.decode().rstrip("\r\n").split(":", 1)
        found.append((name.lower(), value.strip()))
    return found


def http2(gate, path, body, headers=()):
    """A POST over HTTP/2, seen with `h2` itself."""
    with connected(gate, "h2") as tls:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        connection.send_headers(1, [
            (":method", "POST"), (":path", path), (":scheme", "https"), (":authority", gate.authority),
            ("authorization", f"Bearer {gate.app}"), ("content-type", "application/json"), *headers])
        connection.send_data(1, json.dumps(body).encode(), end_stream=True)
        tls.sendall(connection.data_to_send())
        lines, trailers, data, ended = [], {}, b"", None
        while ended is None:
            for event in connection.receive_data(tls.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    lines = list(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = dict(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    ended = False
            tls.sendall(connection.data_to_send())
    return Answer(int(dict(lines)[":status"]), lines, data, trailers, ended)
