"""Sampling settings in a model's file, which llama.cpp's own programs take where the user gives none."""

from __future__ import annotations

from dataclasses import dataclass

from coe_native.errors import InputError
from coe_native.model.gguf_file import encode_entry
from coe_native.model.header import ModelHeader

TEMPERATURE_KEY = "general.sampling.temp"
REPEAT_PENALTY_KEY = "general.sampling.penalty_repeat"

PUBLISHED = {TEMPERATURE_KEY: 0.6, REPEAT_PENALTY_KEY: 1.05}
"""Settings with which the published specialists were judged."""


@dataclass(frozen=True)
class SamplerDefaults:
    """Sampling settings for a specialist's file.

    Attributes:
        temperature: From 0, which takes the likeliest token, to 100; None: the parent's, or the published one.
        repeat_penalty: Above 0 and at most 100; 1: none; None: the parent's, or the published one.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float | None = None
    repeat_penalty: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise InputError(f"the temperature must be from 0 to 100, not {self.temperature}")
        if self.repeat_penalty is not None and not 0 < self.repeat_penalty <= 100:
            raise InputError(f"the repeat penalty must be above 0 and at most 100, not {self.repeat_penalty}")

    def entries(self, parent: ModelHeader) -> dict[str, bytes]:
        """Return the metadata entries that a specialist of a parent gets in place of the parent's, by key."""
        given = {TEMPERATURE_KEY: self.temperature, REPEAT_PENALTY_KEY: self.repeat_penalty}
        known = parent.files[0].keys
        return {
            key: encode_entry(key, float(PUBLISHED[key] if value is None else value))
            for key, value in given.items()
            if value is not None or key not in known
        }


PUBLISHED_SAMPLING = SamplerDefaults()
"""The settings of a specialist where none are given."""


def sampler_defaults_of(model: ModelHeader) -> SamplerDefaults:
    """Return the settings in a model's file, and the published ones for those that it lacks."""

    def read(key: str, most: float, least: float) -> float:
        value = model.metadata(key)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        return float(value) if usable else PUBLISHED[key]

    return SamplerDefaults(read(TEMPERATURE_KEY, 100, 0), read(REPEAT_PENALTY_KEY, 100, 1e-6))
