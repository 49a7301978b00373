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

_RANGES = {TEMPERATURE_KEY: (0.0, 100.0), REPEAT_PENALTY_KEY: (0.01, 100.0)}
"""The least and the largest value. llama.cpp divides by the repeat penalty."""


@dataclass(frozen=True)
class SamplerDefaults:
    """Sampling settings for a specialist's file.

    Attributes:
        temperature: From 0, which takes the likeliest token, to 100; None: the parent's, or the published one.
        repeat_penalty: From 0.01 to 100; 1: none; None: the parent's, or the published one.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float | None = None
    repeat_penalty: float | None = None

    def __post_init__(self) -> None:
        for key, name, value in (
            (TEMPERATURE_KEY, "temperature", self.temperature),
            (REPEAT_PENALTY_KEY, "repeat penalty", self.repeat_penalty),
        ):
            if value is not None and not _in_range(key, value):
                least, most = _RANGES[key]
                raise InputError(f"the {name} must be from {least:g} to {most:g}, not {value}")

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
    temperature, repeat_penalty = (
        PUBLISHED[key] if (own := _usable(model, key)) is None else own
        for key in (TEMPERATURE_KEY, REPEAT_PENALTY_KEY)
    )
    return SamplerDefaults(temperature, repeat_penalty)


def changed_sampling(written: ModelHeader, parent: ModelHeader) -> SamplerDefaults | None:
    """Return the settings that a specialist was written with, as far as its file shows them.

    Returns:
        The settings that differ from the parent's; None if none do, or if `entries` cannot have written them.
    """
    before, after = parent.files[0], written.files[0]

    def changed(key: str) -> float | None:
        same = key not in after.keys or (key in before.keys and before.raw_entry(key) == after.raw_entry(key))
        return None if same else _usable(written, key)

    found = SamplerDefaults(changed(TEMPERATURE_KEY), changed(REPEAT_PENALTY_KEY))
    return None if found == PUBLISHED_SAMPLING else found


def _usable(model: ModelHeader, key: str) -> float | None:
    """Return a setting in a model's file, or None if it is missing or out of range."""
    try:
        value = model.metadata(key)
    except InputError:  # a long list
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and _in_range(key, value) else None


def _in_range(key: str, value: float) -> bool:
    least, most = _RANGES[key]
    return least <= value <= most
