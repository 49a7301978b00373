"""What the commands print that judge programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe_native.cli.generating import share_as_json, share_as_text
from coe_native.cli.output import print_json, print_table, say
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.evaluation.attempts import Attempt
    from coe_native.evaluation.intervals import Share


def print_results(output: Path | None, attempts: Sequence[Attempt], n_problems: int, *, as_json: bool) -> None:
    """Print how many answers passed, in all and by category.

    Args:
        output: The file that has the answers; None: none.
        attempts: The answers.
        n_problems: Number of problems.
        as_json: Print one JSON object.
    """
    from coe_native.evaluation.attempts import by_category

    judged = [attempt for attempt in attempts if attempt.passed is not None]
    categories = {name: _passed(members) for name, members in by_category(judged)}
    if as_json:
        overall = _passed(judged)
        print_json(
            {
                "results": None if output is None else str(output),
                "problems": n_problems,
                "answered": len({attempt.task_id for attempt in attempts}),
                "judged": len(judged),
                **_as_json(overall),
                "categories": {name: _as_json(share) for name, share in categories.items()},
                "isolated": all(attempt.isolated for attempt in judged) if judged else None,
                "tokens": sum(attempt.tokens or 0 for attempt in attempts),
            }
        )
        return
    if not judged:
        where = "" if output is None else f"{output}: "
        say(f"{where}{counted(len(attempts), 'answer')}, not yet run; --allow-code-execution judges them")
        return
    rows = [("overall", _passed(judged)), *categories.items()]
    print_table(
        "",
        ("problems", "passed", "of", "pass@1 (95 % interval)"),
        [(name, str(share.count), str(share.total), share_as_text(share)) for name, share in rows],
    )
    if not all(attempt.isolated for attempt in judged):
        say("warning: some programs ran unisolated and could have changed these results")
    if output is not None:
        say(f"{output}: all answers and their results")


def _passed(attempts: Sequence[Attempt]) -> Share:
    from coe_native.evaluation.intervals import Share

    return Share(sum(bool(attempt.passed) for attempt in attempts), len(attempts))


def _as_json(share: Share) -> dict[str, Any]:
    told = share_as_json(share)
    return {"passed": share.count, "total": share.total, "pass@1": told["share"], "interval": told["interval"]}
