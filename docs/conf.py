"""The documentation: `make docs` builds it without network and executes every code block."""

import ast
import importlib
import importlib.util
import inspect
import logging as standard_logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # For `experiments`, which is used from a clone.

import jax  # noqa: E402

import ojax  # noqa: E402

project, author, version = "ojax", "The ojax authors", ojax.__version__
copyright = "the ojax authors, Apache-2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

# All notebooks are executed anew in each build, in a folder of their own, and fail it on an error.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 150
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "gfm"
nb_ipywidgets_js: dict[str, Any] = {}  # They would come from the network.

# Kernels take no start-up files of the user's, and say only what is wrong.
os.environ["IPYTHONDIR"] = str(Path(__file__).parent / "_build" / "ipython")
standard_logging.getLogger("traitlets").setLevel(standard_logging.WARNING)

mathjax_path = "mathjax/tex-chtml.js"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"ojax {version}"
html_static_path = ["_static"]
html_css_files = ["ojax.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

default_role = "literal"  # Docstrings have code in single backticks.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_use_unqualified_type_names = True

# Modules whose public names the API has to describe: those of `__all__`, or else all that are defined there.
PUBLIC = [
    *(
        "ojax",
        "ojax.datasets",
        "ojax.feedback",
        "ojax.measures",
        "ojax.meta",
        "ojax.modules",
        "ojax.online",
        "ojax.patches",
    ),
    *("ojax.plasticity", "ojax.recurrent", "ojax.streams", "experiments"),
]
logger = logging.getLogger(__name__)


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public name of the library with its object."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        for key in getattr(module, "__all__", [key for key in defined if not key.startswith("_")]):
            value = getattr(module, key)
            if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, jax.custom_vjp):
                yield f"{name}.{key}", value


def check_that_all_is_described(app: Sphinx, environment: Any) -> None:
    """Warns, and so fails the build, of a public name without a place in the API."""
    public = list(public_names())
    described = []
    for name in environment.domaindata["py"]["objects"]:
        module, _, key = name.rpartition(".")
        if module in sys.modules:
            described.append(getattr(sys.modules[module], key, None))
    for name, value in public:
        if not any(value is other for other in described):
            logger.warning("%s is public and not described in docs/api", name)
        if not inspect.getdoc(value) and "<locals>" not in value.__qualname__:  # An initializer of JAX's.
            logger.warning("%s has no docstring", name)


def check_that_no_network_is_needed(app: Sphinx, error: Exception | None) -> None:
    """Warns, and so fails the build, of scripts, styles, fonts and images from elsewhere."""
    if error is not None or app.builder.name != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"'](?:https?:)?//[^\"']+", text)
        loads += re.findall(r"<link\b[^>]*rel=[\"'](?:stylesheet|pre\w+)[^>]*href=[\"'](?:https?:)?//[^>]+", text)
        for found in loads:
            logger.warning("%s loads from the network: %s", page.name, found)


def find_elsewhere(app: Sphinx, environment: Any, node: Any, content: Any) -> Any:
    """A link to a name that is described under another module than that of the docstring which mentions it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or ("." in target and not target.startswith(("ojax.", "experiments."))):
        return None
    domain, last = environment.domains["py"], target.rpartition(".")[2]
    found = [name for name, entry in domain.objects.items() if name.endswith(f".{last}") and entry.objtype != "module"]
    if len(found) != 1:
        return None
    return domain.resolve_xref(environment, node["refdoc"], app.builder, node["reftype"], found[0], node, content)


def silence_kernels(app: Sphinx) -> None:
    """Leaves out the kernels' notes on how they are reached."""
    profile = Path(os.environ["IPYTHONDIR"]) / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n", encoding="utf-8")


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Puts MathJax and its fonts beside the pages. Its package is no extension that pages can be read in parallel with."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if error is not None or app.builder.name != "html" or package is None or package.origin is None:
        return
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2"):
        source, target = Path(package.origin).parent / "static/mathjax" / part, Path(app.outdir) / "_static/mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)


def as_in_the_code(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Signatures with the annotations as they are written: shapes, and names of types in place of what they stand for."""
    is_tuple = hasattr(value, "_fields")  # A NamedTuple, whose fields are its arguments.
    source: Any = value.__init__ if inspect.isclass(value) and not is_tuple else value
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(source))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if isinstance(tree, ast.ClassDef):
        return f"({', '.join(ast.unparse(field) for field in tree.body if isinstance(field, ast.AnnAssign))})", None
    if signature is None or not isinstance(tree, ast.FunctionDef):
        return None
    arguments = tree.args
    if what in ("class", "method") and arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    result = None if what == "class" or tree.returns is None else ast.unparse(tree.returns)
    return f"({ast.unparse(arguments)})", result


def with_shapes_as_they_are(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """The asterisk in a shape such as (*batch, n) begins no emphasis."""
    lines[:] = [re.sub(r"(?<=[('\s])\*(?=[a-z_]+[,)\s'])", r"\\*", line) for line in lines]


def without_fields_of_tuples(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of a NamedTuple, which its docstring describes."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the checks."""
    app.connect("builder-inited", silence_kernels)
    app.connect("build-finished", copy_mathjax)
    app.connect("missing-reference", find_elsewhere)
    app.connect("env-check-consistency", check_that_all_is_described)
    app.connect("build-finished", check_that_no_network_is_needed, priority=900)
    app.connect("autodoc-process-docstring", with_shapes_as_they_are)
    app.connect("autodoc-process-signature", as_in_the_code)
    app.connect("autodoc-skip-member", without_fields_of_tuples)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
