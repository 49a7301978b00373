"""Limits on a server's connections."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from coe_native.errors import CoeError
from coe_native.live.gate import PIECE

HEADER_SECONDS = 10.0
"""Time for a client to send a request's header, from the connection or from the last answer on."""

WRITE_SECONDS = 30.0
"""Time for a client to read what it was sent, once the connection's buffer is full."""

_NO_CHUNKS = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


MOST_CONNECTIONS = 64

BACKLOG = 16
"""Connections that the system accepts before one can be refused here."""

_OTHER_FILES = 64
"""File descriptors that the server needs besides connections."""


def limited_protocol(most: int = MOST_CONNECTIONS) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol, with limits on connections and on waiting times.

    A client has limited time to send a request, and to make room for an answer.

    Args:
        most: Maximum number of connections.
    """

    class LimitedProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._await_request()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._waiting, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # In pieces, to refuse chunked bodies early: a chunk of one byte takes as long as one of a megabyte.
            for start in range(0, len(data), PIECE):
                if self.transport.is_closing():
                    return
                super().data_received(data[start : start + PIECE])
                if any(name == b"transfer-encoding" for name, _ in self.headers or ()):
                    self._refuse_chunks()
                    return
            if self._is_answering:
                self._stop_waiting()
            else:
                self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._is_answering:  # the next request may have arrived with the last one
                self._await_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _refuse_chunks(self) -> None:
            self.cycle.disconnected = True
            self.transport.write(_NO_CHUNKS)
            self.transport.close()

        @property
        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_request(self) -> None:
            if self._waiting is None:
                self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return LimitedProtocol


def connections_that_fit() -> int:
    """Return the number of connections that this process's limit on open files allows.

    Raises:
        CoeError: The limit allows none.
    """
    try:
        import resource
    except ImportError:
        return MOST_CONNECTIONS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MOST_CONNECTIONS if allowed == resource.RLIM_INFINITY else allowed - _OTHER_FILES - BACKLOG
    if left < 1:
        raise CoeError(
            f"only {allowed} files may be open at once, and a server needs {_OTHER_FILES + BACKLOG + 1}; raise "
            "the limit (ulimit -n)"
        )
    return min(left, MOST_CONNECTIONS)
