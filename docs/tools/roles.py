"""An extension of griffe: docstrings as Markdown, with links for roles (``:func:``)."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([\w.]+)`")
# Asterisks of code, parameters and emphasised words stay; others stand for themselves.
_ASTERISK = re.compile(
    r"""``.*?``|`[^`]*`            # code
    |^[ ]*(?:>>>|\.\.\.)[^\n]*    # examples
    |^[ ]*\*+\w+:               # parameters
    |(?<!\w)\*[A-Za-z][\w -]*\*(?!\w)
    |(\*)""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_PACKAGE = Path(__file__).parent.parent.parent / "zipjax" / "__init__.py"


def public_names() -> frozenset[str]:
    """Returns the names that ``zipjax`` imports for its users, without importing it."""
    tree = ast.parse(_PACKAGE.read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return frozenset(alias.name for node in imports for alias in node.names)


class Roles(griffe.Extension):
    """Links the public names that docstrings mention; other names are code."""

    def __init__(self) -> None:
        super().__init__()
        self._public = public_names()

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object that was read."""
        if obj.docstring:
            text = _ROLE.sub(self._linked, obj.docstring.value)
            obj.docstring.value = _ASTERISK.sub(
                lambda found: f"\\{found[0]}" if found[1] else found[0], text
            )

    def _linked(self, role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        if name in self._public and role[1] in (name, f"zipjax.{name}"):
            return f"[`{role[1]}`][zipjax.{name}]"
        return f"`{role[1]}`"
