"""Makes pages of the site from docs/notebooks/*.ipynb, for mkdocs.yml."""

import json
import pathlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def page_of(notebook: pathlib.Path) -> str:
    """Returns a notebook's cells as Markdown, with a link to the notebook."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if code else source)
    title, _, introduction = parts[0].partition("\n")
    link = f"This page is a notebook: [{notebook.name}]({notebook.name})."
    return "\n\n".join([title, link, introduction, *parts[1:]])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every notebook."""
    docs = pathlib.Path(config.docs_dir)
    for notebook in sorted(docs.glob("notebooks/*.ipynb")):
        name = notebook.relative_to(docs).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=page_of(notebook)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Makes links to notebooks lead to their pages."""
    return re.sub(r"(\]\([\w./]*notebooks/\w+)\.ipynb\b", r"\1.md", markdown)
