"""Model files with other metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import coe_native as coe
from coe_native.surgery.plan import Plan, PlannedTensor


def append_entry(source: Path, target: Path, entry: bytes) -> Path:
    """Copy a model and append one metadata entry, given as bytes, even one that gguf's writer refuses."""
    model = coe.MoeModel(source)
    file = model.files[0]
    entries = (*(file.raw_entry(key) for key in file.keys), entry)
    plan = Plan(model, entries, tuple(map(PlannedTensor.whole, model.tensors.values())))
    target.write_bytes(plan.header() + source.read_bytes()[file.header.data_offset :])
    return target


def change_metadata(path: Path, changes: Mapping[str, bytes | None]) -> None:
    """Rewrite a model of one file with other metadata entries, given as bytes; None removes an entry."""
    model = coe.MoeModel(path)
    file = model.files[0]
    raw = {key: file.raw_entry(key) for key in file.keys} | changes
    entries = tuple(entry for entry in raw.values() if entry is not None)
    plan = Plan(model, entries, tuple(map(PlannedTensor.whole, model.tensors.values())))
    path.write_bytes(plan.header() + path.read_bytes()[file.header.data_offset :])
