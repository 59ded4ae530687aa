from __future__ import annotations

import contextlib
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed.engine.wire import (
    MalformedMessageError,
    decode_order,
    decode_reply,
    encode_order,
    encode_reply,
    order_bytes,
    reply_bytes,
)
from polyfed.method.protocol import Order, Reply

REPLY = Reply(
    7,
    {
        "parameters": {"head.digit.weight": torch.ones(2, 3), "encoder.image.bias": torch.zeros(4)},
        "prototypes": {"a": torch.ones(2)},
    },
    {"loss": 0.5},
)
ORDER = Order(
    "train", frozenset({"image", "audio"}), {"parameters": {"head.digit.weight": torch.ones(2, 3)}}, {"lr": 0.1}
)


def test_a_reply_survives_the_wire() -> None:
    read = decode_reply(encode_reply(REPLY))
    assert (read.examples, read.numbers) == (7, {"loss": 0.5})
    assert {group: set(tensors) for group, tensors in read.tensors.items()} == {
        "parameters": {"head.digit.weight", "encoder.image.bias"},
        "prototypes": {"a"},
    }
    assert torch.equal(read.tensors["parameters"]["head.digit.weight"], torch.ones(2, 3))


def test_an_order_survives_the_wire() -> None:
    read = decode_order(encode_order(ORDER))
    assert (read.step, read.active, read.numbers) == ("train", frozenset({"image", "audio"}), {"lr": 0.1})
    assert torch.equal(read.tensors["parameters"]["head.digit.weight"], torch.ones(2, 3))


def test_bytes_are_counted_by_component_and_sum_to_the_message() -> None:
    counted = reply_bytes(REPLY, ["head.digit", "encoder.image"])
    assert counted["head.digit"] == 2 * 3 * 4
    assert counted["encoder.image"] == 4 * 4
    assert counted["prototypes"] == 2 * 4
    assert sum(counted.values()) == len(encode_reply(REPLY))
    assert sum(order_bytes(ORDER, ["head.digit"]).values()) == len(encode_order(ORDER))


def safetensors_of(head: object, payload: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + payload


HOSTILE = {
    "nothing": b"",
    "too short": b"\x01\x02",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n",
    "a header longer than the message": struct.pack("<Q", 2**62) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 4) + b"nope",
    "a header that is a list": safetensors_of([1, 2]),
    "metadata that is no table": safetensors_of({"__metadata__": "reply"}),
    "an order, not a reply": encode_order(ORDER),
    "no count of examples": safetensors_of({"__metadata__": {"kind": "reply"}}),
    "a tensor past the end": safetensors_of(
        {"__metadata__": {"kind": "reply"}, "p:x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"abc"
    ),
    "overlapping tensors": safetensors_of(
        {
            "__metadata__": {"kind": "reply"},
            "p:x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "p:y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        b"0123456789ab",
    ),
    "a tensor without a group": safetensors_of(
        {"__metadata__": {"kind": "reply"}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0123"
    ),
    "a number that is a vector": safetensors_of(
        {"__metadata__": {"kind": "reply"}, "number:x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}},
        b"01234567",
    ),
    "half an example": encode_reply(REPLY).replace(struct.pack("<d", 7.0), struct.pack("<d", 7.5)),
    "deeply nested JSON": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_reply(message)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(message: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_reply(message)


@given(st.data())
def test_flipping_bytes_of_a_message_never_breaks_the_reader(data: st.DataObject) -> None:
    message = bytearray(encode_reply(REPLY))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=5)):
        message[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessageError):
        decode_reply(bytes(message))
