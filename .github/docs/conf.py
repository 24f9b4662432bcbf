"""The site: `python -m sphinx -W --keep-going -b html .github/docs build/site`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
# The processes that run the notebooks see the same code.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import _reference  # noqa: E402

_reference.write(HERE / "api")

project = "jaxvae"
author = "jaxvae developers"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "_site",
]
exclude_patterns = ["**/.*", "**.ipynb_checkpoints"]
nitpicky = True
# Our own public names must hold; those of others have no pages here.
nitpick_ignore_regex = [("py:.*", r"(?!jaxvae\.).*"), ("py:.*", r"jaxvae\.(.*\.)?_.*")]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"  # a notebook that has not changed is not run again; a clean build runs all
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_merge_streams = True

default_role = "name"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Attributes", "params_style"),
    ("Attributes besides those of VAE", "params_style"),
    ("Raises log_prob", "params_style"),
    ("Raises every method", "params_style"),
    ("Raises when it is made", "params_style"),
    ("Raises where it meets a model", "params_style"),
]
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
viewcode_follow_imported_members = True

html_theme = "furo"
html_title = "jaxvae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "tango"
