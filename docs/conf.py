"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # build_backend.py, which has the repository's address
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the table of errors
sys.path.insert(0, str(Path(__file__).parent))  # generated.py and included.py

import batchformer

project = "batchformer"
release = version = batchformer.__version__
html_title = f"batchformer {release}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

extensions = [
    "generated",
    "included",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# A button copies what stands behind these, and no output; of a diff the lines that are added.
copybutton_prompt_text = r">>> |\.\.\. |\$ |\+"
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"  # text is there to be read
exclude_patterns = ["inventories"]
nitpicky = True
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 2
nitpick_ignore = [
    ("py:class", "Figure"),  # matplotlib's, which is optional
    ("py:class", "batchformer.modules._keys.Keys"),  # between BatchFormer and its layers
]
# Type variables stand in signatures and have no page.
nitpick_ignore_regex = [("py:class", r"batchformer\..+\.(Criterion|Model|Targets)")]

# README.md and the others are plain Markdown, where a line may begin with %.
myst_disable_syntax = ["myst_line_comment", "myst_block_break"]
smartquotes_action = "D"  # dashes alone: quotes in docstrings are code's
default_role = "code"  # `x` in a docstring is code, as in Markdown
napoleon_numpy_docstring = False
napoleon_use_param = False  # else the shapes in "x (Tensor[N, C])" are taken for the names of classes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100

# From the files beside this one, as the build is offline; inventories/make.py says where they are from.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.inv"),
    "numpy": ("https://numpy.org/doc/stable", "inventories/numpy.inv"),
}
