"""Foreign text never makes a regular expression of ours search for long: it would hold the interpreter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.growth import grows_linearly

ROOT = Path(__file__).parent.parent
# What our expressions begin with, or go through, without the end that they look for.
PIECES = (
    *("a", "0", " ", "\t", "_", "-", ".", ",", "/", "\\", "<", "<a", "<a ", "<a b=", "</", "=", "$", "$a."),
    *(
        "[",
        "[0].",
        ", a",
        ", a 0000-",
        "/00000000-",
        "/presign/",
        "/data/upload",
        "a://",
        "http:",
        "data:image/",
    ),
    *(
        '"image"  ',
        '"image":',
        "/tasks/0/",
        "step=",
        "bytes 0-",
        "0-0/",
        "CVAT/0.",
        "0.",
        "+",
        "#",
        "con",
        "\n",
    ),
    *("\xff", "\xff\xda", "\x00", "<!--"),
)


def expressions() -> Iterator[tuple[str, str | bytes, int, set[str]]]:
    """Each expression that the packages write out: where, its text, its flags and how it is used."""
    paths = sorted([*ROOT.glob("backend/**/*.py"), *ROOT.glob("adapters/**/*.py")])
    sources = "\n".join(path.read_text() for path in paths)
    for path in paths:
        tree = ast.parse(path.read_text())
        names = {id(node.value): node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    ast.Attribute(ast.Name("re"), use), [ast.Constant(str() | bytes() as text), *more]
                ):
                    given = [*more, *(each.value for each in node.keywords)]
                    flags = " | ".join(each for each in map(ast.unparse, given) if each.startswith("re."))
                    uses = {use}
                    if use == "compile":
                        name = ast.unparse(names[id(node)])
                        uses = set(re.findall(rf"\b{name}\.(\w+)\(", sources))
                    yield f"{path.stem}:{node.lineno}", text, int(eval(flags or "0", {"re": re})), uses
                case _:
                    pass


EXPRESSIONS = tuple(expressions())


@pytest.mark.parametrize(
    ("text", "flags", "uses"), [pytest.param(*each, id=where) for where, *each in EXPRESSIONS]
)
def test_a_search_takes_no_longer_than_the_text_says(text: str | bytes, flags: int, uses: set[str]) -> None:
    pattern = re.compile(text, flags)
    pieces = [each.encode("latin-1") if isinstance(text, bytes) else each for each in PIECES]
    anchored = {
        pattern.match if use == "match" else pattern.fullmatch for use in uses & {"match", "fullmatch"}
    }
    found = [*anchored, *([pattern.search] if uses - {"match", "fullmatch"} else [])]
    assert found, "nobody uses it"

    def search(count: int) -> None:
        for piece in pieces:
            for use in found:
                use(piece * count)

    assert grows_linearly(search, 100)


def test_the_expressions_are_found() -> None:
    assert len(EXPRESSIONS) > 20
