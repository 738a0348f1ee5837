"""The pages that users read, and the code on them."""

import re
from pathlib import Path

from repository import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"


def blocks(page: Path) -> list[str]:
    """The Python code of a page, in its order."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def block_with(page: Path, text: str) -> str:
    """The one block of a page with that text."""
    (block,) = (block for block in blocks(page) if text in block)
    return block
