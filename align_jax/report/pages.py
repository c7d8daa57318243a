"""Renders self-contained HTML pages."""

import base64
import pathlib
from typing import Any

import jinja2

TEMPLATES = pathlib.Path(__file__).with_name("templates")


def render(template: pathlib.Path, **values: Any) -> str:
    """Fills a Jinja template and returns the page; all texts are escaped.

    Args:
      template: path of the template, which may import others of its folder.
      **values: variables of the template.

    Raises:
      jinja2.UndefinedError: the template uses a variable that is not in `values`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def encode_uri(content: bytes, kind: str) -> str:
    """Encodes a picture file as a data URI; `kind` is its MIME subtype, such as png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
