"""The entry point of the command line, before it imports llama.cpp."""

from __future__ import annotations

import os
import signal

import pytest

import coe_native.cli
from coe_native.__main__ import main


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("infinite", "infinite")])
def test_waiting_threads_sleep_soon_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    seen: list[str | None] = []
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(coe_native.cli, "main", lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    main()
    assert seen == [expected]
