"""Where a server listens, and which hosts it answers to."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coe_native.errors import CoeError, InputError
from coe_native.files.atomic import resolved
from coe_native.live.connections import BACKLOG


@dataclass(frozen=True)
class Address:
    """The address to listen on, and the key that clients must send.

    Attributes:
        host: Name or address of this machine.
        port: Port; 0: any free one.
        api_key: The key; None: requests need no key, which only a local address or a Unix socket allows.
        uds: Path of a Unix socket, in place of host and port. Only this user can connect to it.

    Raises:
        InputError: Others could reach the address without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    uds: Path | None = None

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise InputError("an API key must have at least one character")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("an API key must have printable ASCII characters only: it is sent in an HTTP header")
        if self.uds is None and self.api_key is None and not self._is_local:
            raise InputError(
                f"{self.host}: can be reached from other machines; set an API key (--api-key), or listen on "
                "127.0.0.1"
            )

    @property
    def _is_local(self) -> bool:
        return all(ipaddress.ip_address(address[0]).is_loopback for _, address in self._found)

    @property
    def _found(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise InputError(f"{self.host}: is not an address of this machine: {error}") from error
        return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]

    @contextlib.contextmanager
    def listen(self) -> Iterator[tuple[socket.socket, str]]:
        """Listen while the block runs.

        Yields:
            The socket, and the URL or path that clients need.

        Raises:
            CoeError: The address is in use, or is not this machine's.
        """
        if self.uds is not None:
            with _unix_socket(self.uds) as listener:
                yield listener, str(self.uds)
            return
        family, address = self._found[0]
        try:
            listener = socket.create_server(address, family=family)
            # Connections inherit it. asyncio's own is skipped here, so each answer on an open one took 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise CoeError(f"{self.host}:{self.port}: cannot be listened on: {error.strerror or error}") from error
        with listener:
            host, port = listener.getsockname()[:2]
            yield listener, f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def own_hosts(self, port: int) -> frozenset[str]:
        """Return the Host headers that a client on this machine may send.

        Args:
            port: The port that the server listens on.
        """
        names = {"localhost", "127.0.0.1", "[::1]", f"[{self.host}]" if ":" in self.host else self.host.lower()}
        hosts = {f"{name}:{port}" for name in names}
        return frozenset(hosts | names if port == 80 else hosts)


def new_key() -> str:
    """Return a random API key."""
    return secrets.token_urlsafe(32)


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket of mode 600, and remove it when the block ends."""
    if not hasattr(socket, "AF_UNIX"):
        raise InputError(f"{path}: this system has no Unix sockets; use --host and --port")
    path = resolved(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_unused_socket(path)
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
        except OSError as error:
            raise CoeError(f"{path}: cannot be listened on: {error.strerror or error}") from error
        ours = path.stat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(ours, path.stat()):
                    path.unlink()


def _remove_unused_socket(path: Path) -> None:
    """Remove a socket that a killed server has left behind."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"{path}: exists and is not a socket; choose another name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5.0)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise CoeError(f"{path}: another program listens on it; choose another name")
