"""Find models by the names that people have for them: of Ollama's library on this machine, and of Hugging Face."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe_native.errors import InputError
from coe_native.files.regular import read_regular

OLLAMA, HUB = "ollama:", "hf:"

_MODEL_LAYER = "application/vnd.ollama.image.model"
_MOST_MANIFEST = 1 << 20
_SYSTEM_LIBRARIES = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models")
"""Where Ollama keeps models if it runs as a service."""

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[^a-z])(mmproj|imatrix|draft|mtp)([^a-z]|$)")
"""Names of files that belong to a model and are none."""

_USUAL = "Q4_K_M"
"""The quantisation that is taken if none is named, as llama.cpp does."""


def model_path(name: str | Path) -> Path:
    """Return the file of a model.

    Args:
        name: A path; ``ollama:MODEL[:TAG]``, which Ollama has pulled; or ``hf:OWNER/NAME[:QUANT or FILE]``,
            which is taken from the local cache or downloaded.

    Raises:
        InputError: The model does not exist, or huggingface_hub is not installed.
    """
    if not is_name(name):
        return Path(name)
    name = str(name)
    if name.startswith(OLLAMA):
        return _of_ollama(name.removeprefix(OLLAMA))
    return _of_hub(name.removeprefix(HUB))


def is_name(name: str | Path) -> bool:
    """Return whether a text is a name of a model, and no path."""
    return isinstance(name, str) and name.startswith((OLLAMA, HUB))


def _of_ollama(name: str) -> Path:
    """Return the blob of a model that Ollama has pulled.

    A manifest lies at ``manifests/HOST/NAMESPACE/MODEL/TAG`` of the library, and names blobs by their digests.
    """
    base, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    parts = base.split("/")
    if not tag or not all(re.fullmatch(r"[\w.-]+(:\d+)?", part) and part.strip(".") for part in (*parts, tag)):
        raise InputError(f"{OLLAMA}{name}: is not a name; write it like ollama:gemma4:26b")
    where = [*["registry.ollama.ai", "library"][: max(0, 3 - len(parts))], *parts, tag]
    libraries = _ollama_libraries()
    for library in libraries:
        manifest = library.joinpath("manifests", *where)
        if manifest.is_file():
            return _blob(manifest, library, name)
    searched = ", ".join(map(str, libraries))
    raise InputError(f"{OLLAMA}{name}: is not in Ollama's library ({searched}); run `ollama pull {name}`")


def _ollama_libraries() -> list[Path]:
    given = os.environ.get("OLLAMA_MODELS")
    return [Path(given)] if given else [Path.home() / ".ollama" / "models", *map(Path, _SYSTEM_LIBRARIES)]


def _blob(manifest: Path, library: Path, name: str) -> Path:
    try:
        layers: list[Any] = json.loads(read_regular(manifest, _MOST_MANIFEST))["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except OSError as error:
        raise InputError(f"{manifest}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{manifest}: is not a manifest of Ollama ({error})") from error
    if not digests or not re.fullmatch(r"sha256[:-][0-9a-f]{64}", digests[0]):
        raise InputError(f"{OLLAMA}{name}: is a model without a GGUF file; only those can be read")
    blob = library / "blobs" / digests[0].replace(":", "-")
    if not blob.is_file():
        raise InputError(f"{blob}: is missing from Ollama's library; run `ollama pull {name}`")
    return blob


def _of_hub(name: str) -> Path:
    repository, _, wanted = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"{HUB}{name}: is not a name; write it like hf:OWNER/NAME or hf:OWNER/NAME:Q4_K_M")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError as error:
        raise InputError(f"{HUB}{name}: this needs {error.name}: pip install 'coe-native[hub]'") from error
    try:
        cached = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        local = [str(path.relative_to(cached)) for path in cached.rglob("*.[gG][gG][uU][fF]")]
        is_offline = huggingface_hub.constants.HF_HUB_OFFLINE
        files = _chosen(local, wanted or ("" if is_offline else _USUAL))
        if files:
            return cached / files[0]
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"{HUB}{name}: {_first_line(error)}") from error
    try:
        siblings = huggingface_hub.HfApi().model_info(repository).siblings or []
        there = [sibling.rfilename for sibling in siblings if sibling.rfilename.lower().endswith(".gguf")]
        files = _chosen(there, wanted)
        if not files:
            names = ", ".join(sorted(there)[:20]) or "no GGUF files"
            raise InputError(f"{HUB}{name}: has no such file; {repository} has {names}")
        first, *_ = [Path(huggingface_hub.hf_hub_download(repository, file)) for file in files]
        return first
    except InputError:
        raise
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{HUB}{name}: the repository does not exist or is private; set HF_TOKEN to read a private one"
        ) from error
    except Exception as error:  # of the network, of the hub, and of the disk
        raise InputError(f"{HUB}{name}: cannot be downloaded: {_first_line(error)}") from error


def _chosen(files: Sequence[str], wanted: str) -> list[str]:
    """Return the file that is wanted, of a split model all of its files in order; empty if it is not there.

    Args:
        files: The GGUF files of a repository.
        wanted: The name of a file or a quantisation; empty: the usual one, or the first.
    """
    there = [file for file in files if not _NO_MODEL.search(file.lower())]
    models = sorted(there, key=lambda file: (file.count("/"), file))
    if wanted.lower().endswith(".gguf"):
        matching = [file for file in models if wanted in (file, file.rpartition("/")[2])]
    else:
        tag = re.compile(rf"(?<![a-z0-9]){re.escape((wanted or _USUAL).lower())}(?![a-z0-9_])")
        matching = [file for file in models if tag.search(file.lower())]
        if not wanted and not matching:
            matching = models
    if not matching:
        return []
    first = matching[0]
    shard = _SHARD.search(first)
    if shard is None:
        return [first]
    stem, count = first[: shard.start()], int(shard[2])
    shards = [f"{stem}-{number:05d}-of-{count:05d}{first[-5:]}" for number in range(1, count + 1)]
    return shards if set(shards) <= set(models) else []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
