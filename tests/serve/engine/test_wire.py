"""Frames and slots: round trips in any pieces, and bad input."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_serve.config import Bounds
from lens_serve.engine import messages as m
from lens_serve.engine.wire import Channel, ChannelClosedError, Frames, Slots, WireError, frame

DRAW = m.Draw(
    id="a",
    model="lens",
    prompt="ein Löwe 🦁",
    height=16,
    width=32,
    seed=2**63 - 1,
    steps=4,
    guidance=1.5,
    tier="exact",
    lora="ink",
    arrived=12.5,
    start=m.StartPicture(pixels=bytes(range(256)), strength=0.5),
)
TO_ENGINE = [DRAW, m.Cancel(id="a"), m.Release(slot=3)]
COSTS = m.Costs(
    per_image=1,
    per_text=2,
    per_square=3,
    tick_s=4,
    flops_per_s=5,
    half_tokens=6,
    encode_s=7,
    encode_token_s=8,
    decode_s=9,
    decode_pixel_s=10,
)
FROM_ENGINE = [
    m.Ready(device="cpu", models=[], costs={"lens": COSTS}, knee_tokens={"lens": 64}),
    m.Heartbeat(doing="step", expected_s=0.25, tick=9, running=1, waiting=2),
    m.Progress(id="a", step=1, steps=4),
    m.Preview(id="a", number=0, height=1, width=2, pixels=b"\0\1\2\3\4\5"),
    m.Drawn(
        id="a", slot=1, height=2, width=3, latent_sha256="0", pixel_sha256="1", seconds={"encode": 0.5}, features={}
    ),
    m.Failed(id="a", reason="memory", message="too large"),
]


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize(("union", "sent"), [(m.ToEngine, TO_ENGINE), (m.FromEngine, FROM_ENGINE)])
@settings(deadline=None)
@given(data=st.data())
def test_any_pieces_make_the_same_messages(union, sent, data):
    stream = b"".join(map(frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    frames, got = Frames(union), []
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += frames.feed(stream[first:last])
    assert got == sent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",  # no MessagePack
        msgspec.msgpack.encode({"type": "Nonsense"}),
        msgspec.msgpack.encode({"type": "Cancel"}),  # no id
        msgspec.msgpack.encode({"type": "Cancel", "id": 7}),
        msgspec.msgpack.encode(m.Progress(id="a", step=1, steps=2)),  # of the other direction
        b"\x81\xa4type\xa2\xff\xfe",  # no UTF-8
    ],
)
def test_what_is_no_message_is_refused(body):
    with pytest.raises(WireError, match="holds no message"):
        Frames(m.ToEngine).feed(struct.pack(">I", len(body)) + body)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_garbage_is_refused_or_waited_for(data):
    try:
        got = Frames(m.ToEngine).feed(data)
    except WireError:
        return
    assert all(isinstance(one, m.ToEngine) for one in got)


def test_the_largest_picture_and_its_mask_fit_into_a_frame():
    (most,) = (limit.le for limit in Bounds.model_fields["max_pixels"].metadata if hasattr(limit, "le"))
    start = m.StartPicture(pixels=bytes(3 * most), mask=bytes(most), strength=1.0)
    text = "🦁" * 32_000
    assert len(frame(msgspec.structs.replace(DRAW, start=start, prompt=text, negative=text))) > 4 * most


def test_a_length_beyond_the_limit_is_refused_before_it_is_read(monkeypatch):
    with pytest.raises(WireError, match="was announced"):
        Frames(m.ToEngine).feed(struct.pack(">I", m.MAX_FRAME + 1))
    monkeypatch.setattr("lens_serve.engine.wire.MAX_FRAME", 100)
    with pytest.raises(WireError, match="does not fit into a frame"):
        frame(DRAW)


def test_a_channel_takes_all_that_has_come(ends):
    one, other = Channel(ends[0], m.ToEngine), Channel(ends[1], m.FromEngine)
    assert one.receive() == []
    assert one.receive(0.001) == []
    for message in TO_ENGINE:
        other.send(message)
    got = []
    while len(got) < len(TO_ENGINE):
        got += one.receive(10)
    assert got == TO_ENGINE
    ends[1].send(frame(DRAW)[:10])
    assert one.receive(10) == []
    ends[1].send(frame(DRAW)[10:])
    assert one.receive(10) == [DRAW]
    one.send(FROM_ENGINE[0])
    assert other.receive(None) == [FROM_ENGINE[0]]


def test_a_channel_may_have_any_descriptor(ends):
    """A server with a thousand connections starts engines too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        high = fcntl.fcntl(ends[0].fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        one = Channel(socket.socket(fileno=high), m.ToEngine)
        assert one.receive() == []
        ends[1].sendall(frame(DRAW))
        assert one.receive(10) == [DRAW]
        one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_channel_notices_that_the_other_process_has_gone(ends):
    one, other = Channel(ends[0], m.ToEngine), Channel(ends[1], m.FromEngine)
    other.close()
    with pytest.raises(ChannelClosedError):
        one.receive(None)
    with pytest.raises(ChannelClosedError):
        one.send(FROM_ENGINE[1])


def test_a_channel_refuses_what_is_no_frame(ends):
    one = Channel(ends[0], m.ToEngine)
    ends[1].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(WireError, match="was announced"):
        one.receive(10)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_slots_keep_pictures_apart():
    slots = Slots.create(3, 8 * 8 * 3)
    first, last = picture(8, 8), picture(4, 2, seed=1)
    slots.write(0, first)
    slots.write(2, last[:, ::-1])
    copy = slots.read(0, 8, 8)
    np.testing.assert_array_equal(copy, first)
    np.testing.assert_array_equal(slots.read(2, 4, 2), last[:, ::-1])
    assert not slots.read(1, 8, 8).any()
    slots.write(0, picture(8, 8, seed=2))
    np.testing.assert_array_equal(copy, first)
    for slot, height in [(3, 8), (-1, 8), (0, 9)]:
        with pytest.raises(WireError, match="there are 3 slots of 192 bytes"):
            slots.read(slot, height, 8)
        with pytest.raises(WireError, match="there are 3 slots of 192 bytes"):
            slots.write(slot, picture(height, 8))
    slots.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="other files have no name to be known by")
@pytest.mark.parametrize("size", [0, 1 << 61])
def test_memory_that_is_not_to_be_had_leaves_no_open_file(monkeypatch, size):
    made, create = [], os.memfd_create
    monkeypatch.setattr(os, "memfd_create", lambda *given: made.append(create(*given)) or made[0])
    with pytest.raises((OSError, ValueError, OverflowError)):
        Slots.create(1, size)
    file = Path(f"/proc/self/fd/{made[0]}")
    assert not (file.exists() and "lens-pictures" in str(file.readlink()))


def test_a_child_sees_what_its_parent_wrote_and_the_reverse():
    slots = Slots.create(2, 12)
    slots.write(0, picture(2, 2))
    code = (
        "from lens_serve.engine.wire import Slots\n"
        f"slots = Slots({slots.fd}, 2, 12)\n"
        "slots.write(1, slots.read(0, 2, 2)[::-1])\n"
    )
    subprocess.run([sys.executable, "-c", code], pass_fds=[slots.fd], check=True, timeout=60)
    np.testing.assert_array_equal(slots.read(1, 2, 2), picture(2, 2)[::-1])
    slots.close()


def test_without_memfd_the_memory_is_a_file_without_a_name(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    slots = Slots.create(1, 12)
    assert list(tmp_path.iterdir()) == []
    slots.write(0, picture(2, 2))
    np.testing.assert_array_equal(slots.read(0, 2, 2), picture(2, 2))
    slots.close()
