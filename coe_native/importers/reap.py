"""Statistics of REAP: of its observer (a file of torch.save), and of llama-expert-profile (JSON).

Both are a dictionary by block, each with numbers for each expert. The latter tool, which was proposed in
llama.cpp's pull request 20454, writes means instead of sums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.regular import read_regular
from coe_native.model.limits import MOST_BLOCKS, MOST_EXPERTS

_MOST_JSON = 1 << 26

_COUNTS = ("expert_frequency", "activation_counts")
"""The names of the counts of choices."""

_SUMS = {
    "weights": ("weighted_expert_frequency_sum", "avg_gate_weight"),
    "norms": ("ean_sum", "ean_mean"),
    "weighted_norms": ("weighted_ean_sum", "reap"),
}
"""The names of each sum, and of its mean over the tokens that chose the expert."""


@dataclass(frozen=True)
class ReapStatistics:
    """What REAP has counted.

    Attributes:
        blocks: The blocks with experts, ascending.
        tokens: Tokens that each of them has seen.
        top_k: Experts chosen for a token.
        counts: Number of choices, int64 [layer, expert].
        sums: Sums over these choices by name, float64 [layer, expert]: ``weights`` of the router's weights,
            ``norms`` of the activation norms, ``weighted_norms`` of their products.
    """

    blocks: tuple[int, ...]
    tokens: tuple[int, ...]
    top_k: int
    counts: NDArray[np.int64]
    sums: Mapping[str, NDArray[np.float64]]


def read_json(path: Path) -> Any:
    """Return what a JSON file says.

    Raises:
        InputError: It is not JSON, or too large.
    """
    try:
        return json.loads(read_regular(path, _MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def reap_statistics(value: Any, path: Path) -> ReapStatistics | None:
    """Return the statistics in a value, or None if it is something else.

    Args:
        value: What a file holds.
        path: The file, for messages.

    Raises:
        InputError: They are not those of a run.
    """
    if not isinstance(value, Mapping) or not 0 < len(value) <= MOST_BLOCKS:
        return None
    if not all(isinstance(layer, Mapping) and any(name in layer for name in _COUNTS) for layer in value.values()):
        return None
    try:
        layers = {int(block): layer for block, layer in value.items()}
        blocks = tuple(sorted(layers))
        in_order = [layers[block] for block in blocks]
        counts = np.stack([_numbers(layer, _present(layer, _COUNTS)) for layer in in_order])
        tokens = tuple(int(np.asarray(layer["total_tokens"])) for layer in in_order)
        sums = {
            name: np.stack(
                [_sum(layer, of_choices, *names) for layer, of_choices in zip(in_order, counts, strict=True)]
            )
            for name, names in _SUMS.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: holds statistics of REAP that are incomplete or damaged ({error})") from error
    if not all(map(_is_plausible, (counts, *sums.values()))) or not (counts == np.floor(counts)).all():
        raise InputError(f"{path}: has numbers that cannot be statistics of choices")
    chosen = counts.sum(axis=1)
    top_ks = {int(total) // n if n > 0 and total % n == 0 else 0 for total, n in zip(chosen, tokens, strict=True)}
    if len(top_ks) != 1 or top_ks == {0}:
        raise InputError(f"{path}: its layers do not choose one number of experts for each of their tokens")
    return ReapStatistics(blocks, tokens, top_ks.pop(), counts.astype(np.int64), sums)


def _present(layer: Mapping[Any, Any], names: tuple[str, ...]) -> str:
    return next(name for name in names if name in layer)


def _numbers(layer: Mapping[Any, Any], name: str) -> NDArray[np.float64]:
    """Return one number for each expert."""
    values = np.asarray(layer[name], np.float64)
    if values.ndim != 1 or not 0 < values.size <= MOST_EXPERTS:
        raise ValueError(f"{name} is not a number for each expert")
    return values


def _sum(layer: Mapping[Any, Any], counts: NDArray[np.float64], total: str, mean: str) -> NDArray[np.float64]:
    values = _numbers(layer, total) if total in layer else _numbers(layer, mean) * counts
    if values.shape != counts.shape:
        raise ValueError(f"{total if total in layer else mean} has {len(values)} numbers, not {len(counts)}")
    return values


def _is_plausible(values: NDArray[np.float64]) -> bool:
    with np.errstate(invalid="ignore"):  # NaN fails the comparisons
        return bool(((values >= 0) & (values < 2**53)).all())
