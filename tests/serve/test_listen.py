"""Connections of the server send every chunk at once."""

import socket

from slimdeploy.config import ServeConfig
from slimdeploy.serve.server import listen


def test_small_chunks_do_not_wait_for_an_acknowledgement() -> None:
    with listen(ServeConfig(port=0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
