"""Sphinx configuration."""

import skjeffreys

project = "skjeffreys"
copyright = "2026, The skjeffreys developers"
version = release = skjeffreys.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
html_theme = "pydata_sphinx_theme"
html_title = "skjeffreys"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
exclude_patterns = ["_build"]
html_sidebars = {"**": []}  # The header leads to every page; tables need the room.
html_static_path = ["_static"]
html_css_files = ["wide.css"]
