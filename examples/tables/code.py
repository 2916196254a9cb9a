"""A digest of what computes a table, so that results of other code are not taken for results of this code."""

import ast
import functools
import hashlib
from pathlib import Path

import batchformer
from batchformer._extension import core

ROOT = Path(__file__).parents[2]


@functools.cache
def digest(module: str) -> str:
    """A digest of a module, of all that it imports from examples, and of batchformer as it is installed.

    Comments and docstrings do not count.
    """
    found: dict[str, str] = {}
    _collect(module, found)
    text = "\n".join([library(), *(f"{name} {found[name]}" for name in sorted(found))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def library() -> str:
    """A digest of batchformer: of its Python, and of the extension, which a build may change."""
    folder = Path(batchformer.__file__).parent
    texts = [
        f"{path.relative_to(folder)} {ast.dump(_code_of(path))}" for path in sorted(folder.rglob("*.py"))
    ]
    extension = Path(core.__file__).read_bytes()
    return hashlib.sha256("\n".join(texts).encode() + extension).hexdigest()


def _collect(module: str, found: dict[str, str]) -> None:
    """Adds the code of the module, and of those that it imports."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in found or not path.exists():
        return
    tree = _code_of(path)
    found[module] = ast.dump(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("examples."):
            _collect(node.module, found)
            for name in node.names:
                _collect(f"{node.module}.{name.name}", found)


def _code_of(path: Path) -> ast.Module:
    """What a file does, without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return tree


def _is_docstring(statement: ast.AST) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
