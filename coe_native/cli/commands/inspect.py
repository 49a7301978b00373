"""The command ``coe-native inspect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from coe_native.cli.command import Command
from coe_native.cli.mask_options import fit_option, has_fused_topk, slower_on_cuda
from coe_native.cli.options import CTX_IN_USE, for_use, json_option, placement_options
from coe_native.cli.output import print_json, print_table
from coe_native.cli.types import COUNT, MODEL
from coe_native.errors import InputError, printable
from coe_native.units import gibibytes, gigabytes

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions
    from coe_native.model.header import ModelHeader


@click.command(name="inspect", cls=Command)
@click.argument("model", type=MODEL)
@click.option("--keep", type=int, help="Also show the size of a specialist with this many experts in each layer.")
@fit_option
@click.option("--ctx", "n_ctx", type=COUNT, help="Also show the memory needed with a context of this many tokens.")
@placement_options(with_ctx=False)
@json_option
def command(
    model: Path, keep: int | None, fit_bytes: int | None, n_ctx: int | None, options: ModelOptions, as_json: bool
) -> None:
    """Show MODEL's experts, and the size and memory of it and its specialists.

    Only the header is read; no weights are loaded. Memory is what llama.cpp would allocate: on the GPUs if
    there are any, else all of it.
    """
    from coe_native.model.header import ModelHeader
    from coe_native.surgery.fit import largest_keep_that_fits, memory_of

    if keep is not None and fit_bytes is not None:
        raise InputError("--keep and --fit both set the number of experts; give only one of them")
    moe = ModelHeader(model)
    facts = facts_of(moe)
    use = for_use(options, n_ctx or CTX_IN_USE)
    if fit_bytes is not None:
        keep = largest_keep_that_fits(moe, fit_bytes, use).keep
    if keep is not None:
        moe.check_cut(keep)
        facts["specialist"] = {"keep": keep, "bytes": moe.specialist_bytes(keep)}
    if n_ctx is not None or fit_bytes is not None:
        facts["memory"] = {"ctx": use.n_ctx, **asdict(memory_of(moe, moe.n_experts, use))}
        if keep is not None:
            facts["specialist"]["memory"] = asdict(memory_of(moe, keep, use))
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def facts_of(moe: ModelHeader) -> dict[str, Any]:
    """Return what a model's header says, with the keys of the JSON output."""
    kinds: dict[tuple[str, str], list[Any]] = {}
    for layer in moe.layers:
        for tensor in layer.tensors:
            kind = tensor.name.split(".", 2)[2]
            kinds.setdefault((kind, tensor.type_name), []).append(tensor)
    return {
        "path": str(moe.path),
        "name": moe.name,
        "architecture": moe.architecture,
        "fingerprint": moe.fingerprint,
        "bytes": moe.n_bytes,
        "files": len(moe.files),
        "blocks": moe.n_blocks,
        "moe_layers": moe.blocks,
        "mtp_layers": [layer.block for layer in moe.mtp_layers],
        "experts": moe.n_experts,
        "top_k": moe.top_k,
        "layer_top_k": [layer.top_k for layer in moe.routed_layers],
        "expert_groups": moe.router_shape.n_groups,
        "expert_groups_used": moe.router_shape.n_groups_used,
        "obstacle": moe.obstacle,
        "cannot_profile": moe.cannot_count,
        "gating": moe.gating,
        "expert_bytes": moe.expert_bytes,
        "expert_tensors": [
            {
                "tensor": kind,
                "type": type_name,
                "layers": len(tensors),
                "shape": list(Counter(t.shape for t in tensors).most_common(1)[0][0]),
                "bytes": sum(t.n_bytes for t in tensors),
            }
            for (kind, type_name), tensors in sorted(kinds.items())
        ],
        "vision_bytes": sum(tensor.n_bytes for tensor in moe.other_parts),
        "fused_topk": has_fused_topk(moe.n_experts),
        "mask": _mask(moe),
    }


def _mask(moe: ModelHeader) -> dict[str, Any]:
    """Return what coe-native did to the model; empty if nothing."""
    if moe.surgery is None:
        return {}
    more = {key: moe.metadata(f"coe.mask.{key}") for key in ("parent_fingerprint", "parent_expert_count", "mtp")}
    short = {key: value for key, value in more.items() if isinstance(value, int | str) and len(str(value)) < 100}
    return {**short, **msgspec.to_builtins(moe.surgery)}


def _print(facts: dict[str, Any]) -> None:
    layers = facts["moe_layers"]
    rows = [
        ["architecture", facts["architecture"]],
        ["name", facts["name"]],
        ["size", f"{gigabytes(facts['bytes'])} in {facts['files']} file{'s' * (facts['files'] > 1)}"],
        ["of that, experts", gigabytes(facts["expert_bytes"])],
        ["MoE layers", f"{len(layers)} of {facts['blocks']} blocks ({_ranges(layers)})"],
        ["experts in a layer", str(facts["experts"])],
        ["chosen for a token", _chosen(facts)],
        ["gating", facts["gating"]],
        ["fingerprint", facts["fingerprint"][:16]],
    ]
    if facts["mtp_layers"]:
        rows.append(["MTP layers with experts", _ranges(facts["mtp_layers"])])
    if facts["vision_bytes"]:
        rows.append(["vision and audio parts", f"{gigabytes(facts['vision_bytes'])}, as in Ollama's files"])
    if facts["obstacle"]:
        rows.append(["cannot be pruned", facts["obstacle"]])
    if facts["cannot_profile"]:
        rows.append(["cannot be profiled", facts["cannot_profile"]])
    if facts["mask"]:
        done = facts["mask"]
        how = " in place" * done["in_place"]
        rows.append(["made by coe-native", f"{done['mode']}{how}, keep {done['keep']}"])
    if "memory" in facts:
        n_ctx = facts["memory"]["ctx"]
        rows.append([f"memory, {n_ctx} tokens", _memory(facts["memory"])])
    if "specialist" in facts:
        specialist = facts["specialist"]
        whole = ", the whole model" * (specialist["keep"] == facts["experts"])
        rows.append([f"specialist, keep {specialist['keep']}", gigabytes(specialist["bytes"]) + whole])
        if "memory" in specialist:
            rows.append([f"memory, {n_ctx} tokens", _memory(specialist["memory"])])
        if slower := slower_on_cuda(facts["experts"], specialist["keep"]):
            rows.append(["", slower])
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {printable(value)}")
    click.echo()
    print_table(
        "",
        ["expert tensor", "type", "layers", "shape", "size"],
        [
            [
                t["tensor"],
                t["type"],
                str(t["layers"]),
                " x ".join(map(str, t["shape"])),
                gigabytes(t["bytes"]),
            ]
            for t in facts["expert_tensors"]
        ],
    )


def _memory(memory: dict[str, Any]) -> str:
    parts = (memory["weights"], memory["context"], memory["compute"])
    weights, context, compute = map(gibibytes, parts)
    where = " of GPU memory" * memory["on_gpu"]
    return f"{gibibytes(sum(parts))}{where}: weights {weights}, context {context}, compute {compute}"


def _chosen(facts: dict[str, Any]) -> str:
    fewest, most = min(facts["layer_top_k"]), max(facts["layer_top_k"])
    chosen = str(most) if fewest == most else f"{fewest} to {most}"
    groups, used = facts["expert_groups"], facts["expert_groups_used"]
    return chosen if groups == 1 else f"{chosen}, from {used} of {groups} groups"


def _ranges(blocks: list[int]) -> str:
    """Return ascending numbers as text, with neighbours as ranges: 0-3, 5."""
    spans: list[list[int]] = []
    for block in blocks:
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
