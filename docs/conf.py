"""Sphinx builds the documentation as a site: ``make docs``.

The source folder is the repository, so that links from the docs to a README elsewhere, and links
in that README, are pages of the site and are checked as well.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "hpm_video"
release = re.search('__version__ = "(.+)"', (ROOT / "hpm_video/__init__.py").read_text())[1]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "configs/*/README.md", "datasets/*/README.md"]
exclude_patterns = [".*", "outputs", "build"]  # not even looked into
myst_heading_anchors = 4  # as GitHub makes them
autodoc_typehints = "none"  # the docstrings say them, with shapes
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"hpm_video {release}"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_copyright = False
highlight_language = "text"

# A link to a folder of the repository is right, but a site has no page for it
PAGES = [page for pattern in include_patterns for page in ROOT.glob(pattern)]
nitpick_ignore = [
    ("myst", target)
    for page in PAGES
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    if (page.parent / target).is_dir()
]
