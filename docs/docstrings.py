"""How mkdocstrings reads our docstrings: roles are code, and an example is a fence of its own."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Turn what is not Markdown in a docstring into Markdown, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute in place."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Take roles away from the code that they name, and put doctests with what they print into fences."""
    text = re.sub(r":(?:class|func|data|meth|mod|attr):(?=`)", "", text)
    return re.sub(r"(?m)^>>> .*(?:\n(?!\n|\Z).*)*", lambda example: f"```pycon\n{example[0]}\n```", text)
