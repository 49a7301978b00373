"""Shell completion of commands, options and values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.command_line import COMMAND, ENVIRONMENT

SHELLS = ("bash", "zsh", "fish")


def complete(shell: str, *words: str) -> list[str]:
    """What the command answers a shell that asks how the last word goes on."""
    line = ["coe-native", *words]
    asked = {"COMP_WORDS": " ".join(line), "COMP_CWORD": words[-1] if shell == "fish" else str(len(words))}
    run = subprocess.run(
        [COMMAND],
        env=ENVIRONMENT | asked | {"_COE_NATIVE_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_values_are_completed(shell: str) -> None:
    assert any("profile" in answer for answer in complete(shell, "pro"))
    assert any("--until-stable" in answer for answer in complete(shell, "profile", "--unt"))
    assert any("contribution" in answer for answer in complete(shell, "mask", "--method", "con"))
    assert not any("prune" in answer for answer in complete(shell, "pro"))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_the_shell_asks_the_command(shell: str) -> None:
    environment = ENVIRONMENT | {"_COE_NATIVE_COMPLETE": f"{shell}_source"}
    run = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=True)
    assert f"_COE_NATIVE_COMPLETE={shell}_complete" in run.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script() -> None:
    script = (
        f'PATH="{Path(COMMAND).parent}:$PATH"; eval "$(_COE_NATIVE_COMPLETE=bash_source coe-native)"; '
        "COMP_WORDS=(coe-native inspect --k) COMP_CWORD=2; _coe_native_completion coe-native; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    run = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["--keep"]
