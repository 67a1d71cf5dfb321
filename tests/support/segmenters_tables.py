"""Tables of segmenters in the README and the guide: `python -m support.segmenters_tables` in tests/ writes
what `clickmask segmenters` says of them."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from clickmask_adapters.cli import app

ROOT = Path(__file__).parents[2]
PAGES = {
    ROOT / "README.md": ("--markdown",),
    ROOT / "adapters" / "clickmask_adapters" / "docs" / "segmenters.md": ("--markdown", "--all"),
}


def table(*options: str) -> str:
    result = CliRunner().invoke(app, ["segmenters", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def page(path: Path) -> str:
    """What the page should be."""
    text, count = re.subn(
        r"^\| segmenter \|.*\n(\|.*\n)+", lambda _: table(*PAGES[path]), path.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path))
