"""Parents larger than one machine: llama.cpp's own rpc-servers lend their devices."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.helper_process import python_line

_PATIENCE = 20
"""Seconds. A server has one client at a time and keeps others waiting."""

_PYTHON_FAILED = 1
"""Exit status after an exception; llama.cpp aborts."""

_ASK = "from coe_native._native import core; print(core.count_rpc_devices(sys.argv[1]))"


def check_servers(endpoints: Iterable[str]) -> None:
    """Raises InputError unless an rpc-server answers at each ``HOST:PORT``.

    Another process asks: llama.cpp ends the one that meets no server, or one of another version.
    """
    for endpoint in endpoints:
        if not re.fullmatch(r"[^\s:]+:\d{1,5}", endpoint):
            raise InputError(f"{endpoint}: is no address of an rpc-server; write it like 192.168.1.2:50052")
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
                f"{endpoint}: cannot be asked: {asked.stderr.decode(errors='replace').splitlines()[-1]}"
            )
        if asked.returncode or int(asked.stdout) == 0:
            raise InputError(f"{endpoint}: no rpc-server of this llama.cpp's version answers; start one there")
