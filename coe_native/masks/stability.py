"""Find out whether a corpus is large enough: whether its mask has stopped changing."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files import typed_json
from coe_native.masks.build import build
from coe_native.masks.options import MaskOptions
from coe_native.routing.profile import RoutingProfile

FIRST = 4096
"""Tokens after which a mask is built for the first time."""

Kept = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """How far the mask after some tokens agrees with earlier masks.

    Agreement is the mean over layers of the Jaccard index: the experts that both masks keep, by those that at
    least one keeps (Jaccard, 1901). None if there was no mask yet.

    Attributes:
        tokens: The tokens.
        quarter: Agreement with the mask nearest to a quarter of them.
        half: The same for a half.
        three_quarters: The same for three quarters.
    """

    tokens: int
    quarter: float | None
    half: float | None
    three_quarters: float | None


class Stability:
    """The masks of a growing profile, compared with each other until they stop changing.

    The mask is stable if its agreement with the masks at a half and at three quarters of the tokens is at
    least `threshold`. Masks are built four times while the number of tokens doubles: at 4, 5, 6, 7, 8, 10, …
    thousand. Documents should come in random order, because the mask of one kind of text says nothing about
    other kinds that follow.

    Attributes:
        threshold: The smallest agreement of a stable mask.
        curve: The agreement of each mask with earlier ones.

    Raises:
        InputError: `threshold` is not above 0 and at most 1.
    """

    def __init__(self, threshold: float, options: MaskOptions) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"the stability threshold must be above 0 and at most 1, not {threshold}")
        self.threshold = threshold
        self._options = options
        self._masks: list[tuple[int, Kept]] = []
        self.curve: list[Agreement] = []

    @property
    def method(self) -> str | None:
        """Return how the mask's experts are scored; None: by the default for the profile."""
        return self._options.method

    def due(self, n_tokens: int) -> bool:
        """Return whether the next mask is due after this number of tokens."""
        last = self._masks[-1][0] if self._masks else 0
        steps = (FIRST * 2**octave * (4 + step) // 4 for octave in itertools.count() for step in range(4))
        return any(step > last for step in itertools.takewhile(lambda step: step <= n_tokens, steps))

    def look(self, profile: RoutingProfile) -> None:
        """Build the mask of a profile that grew since the last call, and compare it with earlier ones."""
        mask = build(profile, self._options)
        kept = np.zeros((len(mask.kept), mask.n_experts), np.bool_)
        for row, block in enumerate(sorted(mask.kept)):
            kept[row, list(mask.kept[block])] = True
        self._add(profile.n_tokens, kept)

    def _add(self, n_tokens: int, kept: Kept) -> None:
        self._masks.append((n_tokens, kept))
        quarter, half, three_quarters = (self._at(share, n_tokens, kept) for share in (0.25, 0.5, 0.75))
        self.curve.append(Agreement(tokens=n_tokens, quarter=quarter, half=half, three_quarters=three_quarters))

    def _at(self, share: float, n_tokens: int, kept: Kept) -> float | None:
        """Return the agreement with the mask that was built nearest to this share of the tokens."""
        if share * n_tokens < self._masks[0][0]:
            return None
        _, other = min(self._masks[:-1], key=lambda look: abs(look[0] - share * n_tokens))
        return float(((kept & other).sum(axis=1) / (kept | other).sum(axis=1)).mean())

    @property
    def stable(self) -> bool:
        """Return whether the last mask agrees with those at a half and at three quarters of its tokens."""
        if not self.curve or self.curve[-1].half is None or self.curve[-1].three_quarters is None:
            return False
        return min(self.curve[-1].half, self.curve[-1].three_quarters) >= self.threshold

    @property
    def recorded(self) -> str:
        """Return what must be the same for an interrupted run to continue, as text."""
        return f"{self.threshold} {msgspec.json.encode(self._options.recorded()).decode()}"

    def state(self) -> str:
        """Return all masks so far as text, for a checkpoint."""
        looks = [(tokens, base64.b64encode(np.packbits(kept).tobytes()).decode()) for tokens, kept in self._masks]
        return msgspec.json.encode(looks).decode()

    def restore(self, state: str, profile: RoutingProfile) -> None:
        """Restore the masks of an interrupted run.

        Args:
            state: What `state` returned.
            profile: What the run had counted, at its last mask or later.

        Raises:
            InputError: The state is damaged.
        """
        shape = profile.histograms.shape[:2]
        n_bytes = -(-shape[0] * shape[1] // 8)
        for tokens, text in typed_json.decode(state, list[tuple[int, str]]):
            try:
                data = base64.b64decode(text, validate=True)
            except ValueError as error:
                raise InputError("it holds no masks") from error
            if len(data) != n_bytes or not 0 < tokens <= profile.n_tokens:
                raise InputError("it holds masks of another model")
            bits = np.unpackbits(np.frombuffer(data, np.uint8), count=shape[0] * shape[1])
            kept = bits.reshape(shape).astype(np.bool_)
            if not kept.any(axis=1).all():
                raise InputError("it holds masks that keep nothing")
            self._add(tokens, kept)
