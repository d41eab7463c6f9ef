"""Sockets that listen."""

from __future__ import annotations

import socket

from lens_serve.listening import listening


def test_no_part_of_an_answer_waits_for_the_client_to_acknowledge_another():
    with (
        listening("127.0.0.1", 0, key="listen.port", advice="choose another") as bound,
        socket.create_connection(bound.getsockname()),
    ):
        accepted, _ = bound.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
