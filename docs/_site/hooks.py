"""What MkDocs calls while it builds the site."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import reference

README = Path(__file__).resolve().parents[2] / "README.md"
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./)+(?!docs/)[^)]*\.(?:py|toml|yaml|proto|service)\)")
"""A link to a source file: on the site its name is enough."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code, and the README as the first page."""
    for name, page in reference.PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    text = re.sub(r"\]\((?:docs/)([^)]+)\)", r"](\1)", README.read_text())
    text = re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*(?<!\.md)(?<!\.png)(?<!\.svg)\)", r"\1", text)
    text = re.sub(r"\[([^\]]+)\]\((?:CONTRIBUTING|CHANGELOG)\.md\)", r"\1", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    """Turn links out of the documentation into plain names."""
    return OUTSIDE.sub(r"\1", markdown)
