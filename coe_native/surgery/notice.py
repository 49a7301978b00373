"""The notice about removed experts that every pruned file carries."""

from __future__ import annotations

from coe_native.routing.scores import reason_for_removal


def safety_notice(method: object = None) -> str:
    """Return what users of a pruned model must know.

    Args:
        method: How the experts were scored, if that is known.
    """
    return (
        f"Experts were removed {reason_for_removal(str(method))}. Experts that carried safety or alignment "
        "behaviour may be gone, and thinking modes tend to loop: use it with thinking off, and test it."
    )
