"""A digest of the code of a table, so that results of other code are not taken for results of this code."""

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


@functools.cache
def digest(module: str) -> str:
    """A digest of a module and of all that it imports from examples, without comments and docstrings."""
    found: dict[str, str] = {}
    _collect(module, found)
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _collect(module: str, found: dict[str, str]) -> None:
    """Adds the code of the module, and of those that it imports."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in found or not path.exists():
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found[module] = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("examples."):
            _collect(node.module, found)
            for name in node.names:
                _collect(f"{node.module}.{name.name}", found)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    found[module] = ast.dump(tree)


def _is_docstring(statement: ast.AST) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
