"""A relay of the connection to process 0, which tells when process 0 has gone.

JAX's client aborts its process, with a stack trace, as soon as its connection breaks. Led through the relay, its end of the
connection stays open whatever happens at the other.
"""

import select
import socket
import threading
import time
from collections.abc import Callable

LOOK = 0.2  # seconds between looks at what no byte announces


def split(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; brackets around an IPv6 address are left out."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def open_relay(address: str, patience: float, lost: Callable[[str], None], joined: threading.Event) -> str:
    """HOST:PORT on this machine that leads to `address`, that of process 0, which may come later. It counts as gone
    after `patience` seconds without a byte; `lost` is told why, again and again, until the client leaves or process 0
    is heard. Once `joined` is set no further connection is accepted; those that were made last."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(LOOK)
    _start(_accept, listener, address, patience, lost, joined)
    return "{}:{}".format(*listener.getsockname())


def _start(function: Callable, *arguments) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _accept(listener: socket.socket, address: str, patience: float, lost, joined: threading.Event) -> None:
    with listener:
        while not joined.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            _start(_serve, client, address, patience, lost)


def _serve(client: socket.socket, address: str, patience: float, lost) -> None:
    with client, _reached(address) as server:
        for end in (client, server):
            end.settimeout(patience)  # of a peer that takes no more
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _carry(client, server, patience, lost)


def _reached(address: str) -> socket.socket:
    """A connection to the server, as soon as there is one."""
    while True:
        try:
            return socket.create_connection(split(address), timeout=5)
        except OSError:
            time.sleep(LOOK)


def _carry(client: socket.socket, server: socket.socket, patience: float, lost) -> None:
    """Carries bytes both ways until the client leaves."""
    heard, gone = time.monotonic(), False
    while True:
        ready, _, _ = select.select([client] if gone else [client, server], [], [], LOOK)
        if client in ready:
            if not (sent := _received(client)):
                return
            gone = gone or not _passed(server, sent)
        if server in ready and not gone:
            if answer := _received(server):
                heard = time.monotonic()
                _passed(client, answer)
            else:
                gone = True
        silent = time.monotonic() - heard
        if gone:
            lost("process 0 has gone")
        elif silent > patience:
            lost(f"nothing was heard of process 0 for {silent:.0f} s")


def _received(end: socket.socket) -> bytes:
    """What has come; nothing from an end that was closed or has broken."""
    try:
        return end.recv(65536)
    except OSError:
        return b""


def _passed(end: socket.socket, content: bytes) -> bool:
    """Whether the content could be passed on."""
    try:
        end.sendall(content)
    except OSError:
        return False
    return True
