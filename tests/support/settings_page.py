"""The guide's page of settings, generated: `python -m support.settings_page` in tests/ writes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from clickmask_adapters.settings import CoreSettings, Settings, variables

PAGE = Path(__file__).parents[2] / "adapters" / "clickmask_adapters" / "docs" / "settings.md"
HEAD = """# Settings

Every setting is an environment variable. Lists are comma separated. This page is generated from
`clickmask_adapters.settings`.

| variable | default | |
|---|---|---|
"""


def default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
            if value and value % size == 0:
                return f"{value} ({value // size} {unit})"
    return f"`{value}`"


def fields() -> dict[str, FieldInfo]:
    """clickmask's own first, then the tools'."""
    every = Settings.model_fields
    return {name: every[name] for name in dict.fromkeys([*CoreSettings.model_fields, *every])}


def page() -> str:
    rows: list[str] = []
    for name, field in fields().items():
        written = ", ".join(f"`{each}`" for each in variables(name, field))
        said = " ".join((field.description or "").split())
        rows.append(f"| {written} | {default(field.default)} | {said} |")
    assert not any(isinstance(field.default, SecretStr) for field in Settings.model_fields.values())
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
