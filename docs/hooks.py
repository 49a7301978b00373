"""Pages whose text stands at the top of the repository, where people look for it first."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"contributing/index.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take the page's text from the file of the repository, with links to docs/ made relative to the page."""
    source = FROM_ROOT.get(page.file.src_uri)
    if source is None:
        return markdown
    folder = posixpath.dirname(page.file.src_uri) or "."
    text = (ROOT / source).read_text(encoding="utf-8")
    return re.sub(r"(?<=\]\()docs/([^)#]+)", lambda link: posixpath.relpath(link[1], folder), text)
