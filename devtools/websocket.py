"""Just enough of RFC 6455 to listen to ComfyUI: text and binary frames from a server on this machine."""

from __future__ import annotations

import base64
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """A client connection. `receive` returns whole messages; a timeout in the middle of one loses nothing."""

    def __init__(self, host: str, port: int, path: str, timeout: float = 30.0):
        self._socket = socket.create_connection((host, port), timeout)
        self._buffer = b""
        self._parts: list[bytes] = []
        self._kind = TEXT
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].decode("latin-1")
        if " 101" not in status:
            raise ConnectionError(f"The server refused the websocket: {status}")

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message, text as str and binary as bytes; None when the time is over or the server has closed."""
        self._socket.settimeout(timeout)
        while True:
            try:
                final, kind, payload = self._frame()
            except TimeoutError:
                return None
            if kind == CLOSE:
                self.close()
                raise ConnectionError("The server closed the websocket.")
            if kind == PING:
                self._send(PONG, payload)
                continue
            if kind == PONG:
                continue
            if kind in (TEXT, BINARY):
                self._kind, self._parts = kind, []
            self._parts.append(payload)
            if final:
                whole = b"".join(self._parts)
                return whole.decode("utf-8") if self._kind == TEXT else whole

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _frame(self) -> tuple[bool, int, bytes]:
        """One frame off the buffer; the buffer is cut only once the frame is complete."""
        self._need(2)
        first, second = self._buffer[0], self._buffer[1]
        length, start = second & 127, 2
        if length in (126, 127):
            start = 4 if length == 126 else 10
            self._need(start)
            length = struct.unpack(">H" if start == 4 else ">Q", self._buffer[2:start])[0]
        self._need(start + length)
        payload, self._buffer = self._buffer[start : start + length], self._buffer[start + length :]
        return bool(first & 128), first & 15, payload

    def _need(self, size: int) -> None:
        while len(self._buffer) < size:
            self._fill()

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("The server closed the connection.")
        self._buffer += data

    def _send(self, kind: int, payload: bytes) -> None:
        mask = os.urandom(4)  # a client must mask what it sends
        body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self._socket.sendall(bytes((128 | kind, 128 | len(payload))) + mask + body)
