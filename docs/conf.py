"""Sphinx configuration."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from tapetum import __version__

project = "Tapetum"
author = "The Tapetum developers"
project_copyright = "2026, the Tapetum developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_reference"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the numpydoc sections say more: shapes and units
autodoc_mock_imports = ["torch", "onnxscript"]  # the page of the room `training` builds without the extra
# the word `shape` in a type is no reference, though several classes have an attribute of that name
suppress_warnings = ["ref.python"]
exclude_patterns = ["_build", "_ext"]
html_theme = "pydata_sphinx_theme"
html_title = "Tapetum"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
