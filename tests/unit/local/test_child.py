"""What a part of the stack is started with."""

import socket

import pytest

from torpor.local.child import free_port


def test_a_free_port_stays_reserved_until_its_process_listens() -> None:
    port = free_port()

    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as own:
        assert own.getsockname()[1] == port
