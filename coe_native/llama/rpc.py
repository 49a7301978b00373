"""Check llama.cpp's rpc-servers, which lend their devices to parents that are too large for one machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.helper_process import python_line

_PATIENCE = 20
"""Seconds to wait for an answer. A server serves one client at a time, and others wait."""

_PYTHON_FAILED = 1
"""Exit status after an exception. llama.cpp aborts, with another status."""

_ASK = "from coe_native._native import core; print(core.count_rpc_devices(sys.argv[1]))"


def check_servers(endpoints: Iterable[str]) -> None:
    """Check that an rpc-server answers at each ``HOST:PORT``.

    This runs in another process, because llama.cpp aborts if there is no server or one of another version.

    Raises:
        InputError: An address is invalid, no server of this version answers, or this llama.cpp cannot use
            servers.
        CoeError: The check itself failed.
    """
    for endpoint in endpoints:
        if not re.fullmatch(r"[^\s:]+:\d{1,5}", endpoint):
            raise InputError(f"{endpoint}: is not the address of an rpc-server; write it like 192.168.1.2:50052")
        if not core.has_rpc():
            raise InputError(
                f"{endpoint}: this llama.cpp cannot use rpc-servers; install llama-cpp-python again "
                "with CMAKE_ARGS=-DGGML_RPC=ON"
            )
        try:
            asked = subprocess.run(
                python_line(_ASK, endpoint), capture_output=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{endpoint}: did not answer in {_PATIENCE} s; it may serve another client"
            ) from error
        if asked.returncode == _PYTHON_FAILED:
            raise CoeError(
                f"{endpoint}: could not be checked: {asked.stderr.decode(errors='replace').splitlines()[-1]}"
            )
        if asked.returncode or int(asked.stdout) == 0:
            raise InputError(f"{endpoint}: no rpc-server of this llama.cpp's version answers; start one there")
