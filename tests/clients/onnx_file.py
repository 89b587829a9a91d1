"""ONNX files in the wire format of protobuf, which needs no library: a small encoder, and any model with its initializers moved into other files.
Field numbers are those of onnx.proto."""

import json
import struct

import gate as gates

SMALL = gates.ROOT / "tests/data/encoders/bert-mean"


def number(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def varint(field, value):
    return number(field << 3) + number(value)


def data(field, value):
    value = value.encode() if isinstance(value, str) else value
    return number(field << 3 | 2) + number(len(value)) + value


def fields(message):
    """Number and value of each field, and its bytes as they stand there. Groups are none of ONNX's."""
    place = 0

    def read():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                return value

    while place < len(message):
        begun, tag = place, read()
        if tag & 7 == 0:
            value = read()
        else:
            length = read() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
            value, place = message[place:place + length], place + length
        yield tag >> 3, value, message[begun:place]


def placed(location, offset, length):
    """What stands in a tensor in place of its data."""
    pairs = [("location", location), ("offset", str(offset)), ("length", str(length))]
    return b"".join(data(13, data(1, key) + data(2, value)) for key, value in pairs) + varint(14, 1)


def moved(model, place):
    """The model with its initializers elsewhere: `place` is given each one's name and bytes, and says (location, offset) or None."""

    def tensor(whole):
        parts = list(fields(whole))
        found = {field: value for field, value, _ in parts}
        there = place(found[8].decode(), found[9]) if 9 in found else None
        if there is None:
            return whole
        return b"".join(written for field, _, written in parts if field != 9) + placed(*there, len(found[9]))

    def graph(whole):
        return b"".join(data(5, tensor(value)) if field == 5 else written for field, value, written in fields(whole))

    return b"".join(data(7, graph(value)) if field == 7 else written for field, value, written in fields(model))


ROWS, WIDTH = 35, json.loads((SMALL / "config.json").read_text())["hidden_size"]


def row(token):
    return [float((token * 31 + place * 7) % 17 - 8) for place in range(WIDTH)]


def table(pieces=1):
    """An encoder for the tokenizer of the smallest one, that answers the mean of its tokens' rows; the rows are initializers, so many."""
    each = -(-ROWS // pieces)
    parts = [range(ROWS)[start:start + each] for start in range(0, ROWS, each)]

    def rows(piece, tokens):
        packed = b"".join(struct.pack("<f", value) for token in tokens for value in row(token))
        return varint(1, len(tokens)) + varint(1, WIDTH) + varint(2, 1) + data(8, f"rows{piece}") + data(9, packed)

    def port(name, element, dimensions):
        shape = b"".join(data(1, varint(1, length) if isinstance(length, int) else data(2, length)) for length in dimensions)
        return data(1, name) + data(2, data(1, varint(1, element) + data(2, shape)))

    axis = data(5, data(1, "axis") + varint(3, 0) + varint(20, 2))
    joined = b"".join(data(1, f"rows{piece}") for piece in range(len(parts))) + data(2, "table") + data(4, "Concat") + axis
    looked_up = data(1, "table") + data(1, "input_ids") + data(2, "last_hidden_state") + data(4, "Gather")
    graph = data(1, joined) + data(1, looked_up) + data(2, "table") + b"".join(data(5, rows(*part)) for part in enumerate(parts))
    graph += b"".join(data(11, port(name, 7, ["texts", "tokens"])) for name in ("input_ids", "attention_mask"))
    graph += data(12, port("last_hidden_state", 1, ["texts", "tokens", WIDTH]))
    return varint(1, 8) + data(8, varint(2, 17)) + data(7, graph)


CAT = ("The cat sat on the mat.", [2, 5, 7, 9, 10, 5, 11, 26, 3])


def mean(tokens):
    """What the encoder answers, of length 1."""
    sums = [sum(row(token)[place] for token in tokens) for place in range(WIDTH)]
    length = sum(value * value for value in sums) ** 0.5
    return [value / length for value in sums]
