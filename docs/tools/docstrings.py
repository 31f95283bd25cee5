"""An extension of griffe: docstrings as Markdown, with examples and links."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([\w.]+)`")
# Asterisks of code, parameters and emphasised words stay; others stand for themselves.
_ASTERISK = re.compile(
    r"""```.*?```|``.*?``|`[^`]*`|(?<=\n\n)[ ]{4}[^\n]*(?:\n[ ]{4}[^\n]*)*  # code
    |^[ ]*\*+\w+:               # parameters
    |(?<!\w)\*[A-Za-z][\w -]*\*(?!\w)
    |(\*)""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
# A paragraph that begins with a prompt.
_EXAMPLE = re.compile(r"(?:(?<=\n\n)|^)([ ]*)>>> .*?(?=\n\n|\n?\Z)", re.DOTALL)
_PACKAGE = Path(__file__).parent.parent.parent / "zipjax" / "__init__.py"


def public_names() -> frozenset[str]:
    """Returns the names that ``zipjax`` imports for its users, without importing it."""
    tree = ast.parse(_PACKAGE.read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return frozenset(alias.name for node in imports for alias in node.names)


class Docstrings(griffe.Extension):
    """Shows examples as code, and links the public names that docstrings mention."""

    def __init__(self) -> None:
        super().__init__()
        self._public = public_names()

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object that was read."""
        if obj.docstring:
            text = _EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            text = _ROLE.sub(self._linked, text)
            obj.docstring.value = _ASTERISK.sub(
                lambda found: f"\\{found[0]}" if found[1] else found[0], text
            )

    def _linked(self, role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        if name in self._public and role[1] in (name, f"zipjax.{name}"):
            return f"[`{role[1]}`][zipjax.{name}]"
        return f"`{role[1]}`"
