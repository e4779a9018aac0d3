"""Sphinx configuration: MyST pages, Furo theme, API pages from the docstrings, no external resource."""

from importlib.metadata import version as installed_version

project = "healthobs"
copyright = "The healthobs maintainers"  # noqa: A001 - Sphinx names it
author = "The healthobs maintainers"
release = version = installed_version("healthobs")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"healthobs {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
nitpicky = True
# Names of the standard library and of dependencies: their inventories live on other hosts, and the build
# works with the network cut off. Our own names are all checked.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!healthobs|reference_services).*"),
    (r"py:.*", r".*\b(_F|P|R|T)"),
    # Shapes that callers never name: protocols and rows of private modules.
    (r"py:.*", r"healthobs\.(_\w+|audit\.draft|compliance\.probes_\w+)\..*"),
]
