"""How Sphinx builds the documentation: `make docs`. The site is read offline, so nothing in it comes from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import morphing_trainer

project = "morphing_trainer"
release = version = morphing_trainer.__version__
copyright = "the authors of morphing_trainer"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generation.site"]
exclude_patterns = ["_build", "generation"]
source_suffix = {".md": "markdown"}
highlight_language = "none"
smartquotes = False  # --option must not become a dash
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "deflist"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = "morphing_trainer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f5cad", "color-brand-content": "#0f5cad"},
    "dark_css_variables": {"color-brand-primary": "#7db8f5", "color-brand-content": "#7db8f5"},
}
