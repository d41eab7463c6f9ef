"""How frames and pictures travel between the API process and an engine.

    socket    frames both ways: 4 bytes of length, big-endian, and the MessagePack of a message
    memory    finished pictures, in slots that both processes have mapped; a frame says which

Both are made by the API process and inherited by the engine as open files. Neither has a name, so nobody else can come
by one, and there is nothing to clean up: the kernel frees both with their last holder.
"""

from __future__ import annotations

import math
import mmap
import os
import select
import struct
import tempfile
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from lens_core.errors import LensError
from lens_serve.engine.messages import MAX_FRAME

if TYPE_CHECKING:
    import socket
    from typing import Self

__all__ = ["Channel", "ChannelClosedError", "Frames", "Slots", "WireError", "frame"]

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 18


class WireError(LensError):
    """What came is no frame, or what was to be sent does not fit into one."""


class ChannelClosedError(WireError):
    """The other process has gone."""


def frame(message: msgspec.Struct) -> bytes:
    """The bytes of a message on the socket.

    Raises:
        WireError: they are more than `MAX_FRAME`.
    """
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME:
        raise WireError(f"a {type(message).__name__} of {len(body)} bytes does not fit into a frame of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """From bytes, in whatever pieces they come, to messages.

    Args:
        messages: the union that is expected: `ToEngine` or `FromEngine`.
    """

    def __init__(self, messages: Any):
        self._decoder = msgspec.msgpack.Decoder(messages)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that these bytes complete.

        Raises:
            WireError: the bytes are no frames. What was read before is lost: close the socket.
        """
        self._buffer += data
        messages, at = [], 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes was announced, and {MAX_FRAME} is the most")
            end = at + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(self._buffer[at + _LENGTH.size : end]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
                raise WireError(f"a frame of {length} bytes holds no message: {error}") from error
            at = end
        del self._buffer[:at]
        return messages


class Channel:
    """One end of the socket, for a process that computes and looks up in between.

    Args:
        end: a connected stream socket; the channel closes it.
        messages: what comes: `ToEngine` or `FromEngine`.
    """

    def __init__(self, end: socket.socket, messages: Any):
        self._socket = end
        self._socket.setblocking(True)
        self._frames = Frames(messages)
        self._poll = select.poll()  # `select` knows no file beyond the 1024th
        self._poll.register(end, select.POLLIN)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; waits while the other process is behind with reading.

        Raises:
            ChannelClosedError: the other process has gone.
        """
        try:
            self._socket.sendall(frame(message))
        except OSError as error:
            raise ChannelClosedError("the other end of the socket is closed") from error

    def receive(self, timeout_s: float | None = 0.0) -> list[Any]:
        """The messages that have come; waits for the first bytes only, and None waits for ever.

        Raises:
            ChannelClosedError: the other process has gone.
            WireError: it does not send frames.
        """
        messages: list[Any] = []
        while self._poll.poll(None if timeout_s is None else math.ceil(1000 * timeout_s)):
            try:
                data = self._socket.recv(_CHUNK)
            except OSError as error:
                raise ChannelClosedError("the other end of the socket is closed") from error
            if not data:
                raise ChannelClosedError("the other end of the socket is closed")
            messages += self._frames.feed(data)
            timeout_s = 0.0
        return messages

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Slots:
    """Memory for pictures that two processes share: `count` slots of `size` bytes each.

    Args:
        fd: the open file of the memory; the slots close it.
        count: how many.
        size: bytes of one.
    """

    def __init__(self, fd: int, count: int, size: int):
        self.fd, self.count, self.size = fd, count, size
        self._memory = mmap.mmap(fd, count * size)

    @classmethod
    def create(cls, count: int, size: int) -> Self:
        """New memory without a name; its `fd` is for the child's `pass_fds`.

        Raises:
            OSError, ValueError, OverflowError: there is not so much, or none was asked for.
        """
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("lens-pictures", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:  # has no name in any folder
                fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, count * size)
            return cls(fd, count, size)
        except BaseException:
            os.close(fd)
            raise

    def write(self, slot: int, picture_HW3: np.ndarray) -> None:
        """Put a uint8 picture into a slot.

        Raises:
            WireError: there is no such slot, or it is too small.
        """
        begin = self._begin(slot, picture_HW3.nbytes)
        self._memory[begin : begin + picture_HW3.nbytes] = np.ascontiguousarray(picture_HW3).data.cast("B")

    def read(self, slot: int, height: int, width: int) -> np.ndarray:
        """A copy of the picture in a slot, uint8 [height, width, 3].

        Raises:
            WireError: there is no such slot, or it is too small.
        """
        length = height * width * 3
        begin = self._begin(slot, length)
        picture = np.frombuffer(self._memory, np.uint8, length, begin).reshape(height, width, 3)
        return picture.copy()

    def close(self) -> None:
        """Unmap the memory. It lives on in the other process, if that has it mapped."""
        self._memory.close()
        os.close(self.fd)

    def _begin(self, slot: int, length: int) -> int:
        if not (0 <= slot < self.count and 0 <= length <= self.size):
            raise WireError(f"{length} bytes in slot {slot}: there are {self.count} slots of {self.size} bytes")
        return slot * self.size
