"""Sphinx settings: built offline, a warning is an error."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "alloy_trio"
author = "The alloy_trio contributors"
project_copyright = author
version = release = importlib.metadata.version("alloy_trio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"alloy_trio {release}"

myst_heading_anchors = 3

default_role = "literal"  # docstrings quote code as Markdown does, with single backticks
napoleon_use_ivar = True  # an attribute is documented once, in its class's docstring
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Block", "Event", "JSONObject", "Outcome", "ProviderEvent", "Status")}
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def _keep_colons(_app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Napoleon takes what precedes a colon in the first line of a property's docstring for its type; there is none here."""
    if what == "property":
        lines[:0] = ["..", ""]  # a comment


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)  # ahead of napoleon's 500
