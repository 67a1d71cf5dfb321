"""What the README and the guide show works."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from clickmask import segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder
from clickmask.types import Image, Prompt
from clickmask_adapters.cli import app
from clickmask_adapters.settings import Settings, variables
from clickmask_adapters.tools.label_studio import label_config
from support import segmenters_tables, settings_page
from support.served import serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = sorted((ROOT / "adapters" / "clickmask_adapters" / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *GUIDE]


def test_the_segmenter_in_one_file_is_found_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "brighter.py").write_text(example)
    monkeypatch.setattr(segmenters, "__path__", [*segmenters.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    segmenter = Catalogue(segmenters, WeightsFolder(tmp_path)).get("brighter")
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:10, 5:15] = 200
    embedding = segmenter.encode(Image(pixels, "digest"))
    (prediction,) = segmenter.decode(embedding, Prompt(foreground=((10.0, 7.0),)))
    assert np.array_equal(prediction.mask, pixels[..., 0] > 0)
    assert embedding.nbytes > 0


def shell(command: str) -> str:
    """The README's only shell example with this command, as it stands."""
    (example,) = (each for each in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if command in each)
    return example


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_the_request_is_answered_as_it_stands(tmp_path: Path) -> None:
    example = shell("curl ")
    assert example.count("http://127.0.0.1:9090") == 1, "where `make serve` serves"
    with serving(tmp_path) as server:
        example = example.replace("http://127.0.0.1:9090", server.url)
        command = ["bash", "-eo", "pipefail", "-c", example]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(answer.stdout)
    assert (found["image"]["width"], found["image"]["height"]) == (451, 300)
    assert found["proposals"][0]["area"] > 5000
    assert found["proposals"][0]["polygons"]


def test_the_picture_that_is_segmented_in_one_line_is_written_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    _, *words = shlex.split(shell("clickmask segment ").splitlines()[0], comments=True)
    assert words[-2:] == ["--out", "mask.png"]
    done = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "mask.png")])
    assert done.exit_code == 0, done.output
    with PIL.Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (451, 300)


@pytest.mark.parametrize("page", ["README.md", "label-studio.md"])
def test_a_click_in_the_labeling_interface_as_shown_is_answered_with_its_label(page: str) -> None:
    (text,) = (each.read_text() for each in PAGES if each.name == page)
    (shown,) = re.findall(r"```xml\n(.*?)```", text, re.DOTALL)
    config = label_config.parse(textwrap.dedent(shown))
    assert [control.name for control in config.controls if control.smart] == ["point", "box"]
    (answer,) = config.answers("image", "point", ["Dog"])
    assert [control.name for control in answer.controls] == ["brush", "label"]
    assert answer.labels == ("Dog",)
    (unlabelled,) = config.answers("image", "point", [])
    assert [control.name for control in unlabelled.controls] == ["brush"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_named_is_read(page: Path) -> None:
    known = {each for name, field in Settings.model_fields.items() for each in variables(name, field)}
    named = set(re.findall(r"(?:CLICKMASK|LABEL_STUDIO|CVAT)_[A-Z_]*[A-Z]\b", page.read_text()))
    of_cvat_itself = {name for name in named if name.startswith("CVAT_NUCLIO_")}
    assert named - of_cvat_itself <= known


def test_the_page_of_settings_is_what_the_settings_are() -> None:
    said = settings_page.PAGE.read_text()
    assert said == settings_page.page(), "run `python -m support.settings_page` in tests/"
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("page", segmenters_tables.PAGES, ids=lambda page: page.name)
def test_the_table_of_segmenters_is_what_the_command_prints(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path))
    expected = segmenters_tables.page(page)
    assert page.read_text() == expected, "run `python -m support.segmenters_tables` in tests/"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).resolve().exists(), target


def test_every_page_of_the_guide_is_linked_from_the_readme() -> None:
    assert {f"(adapters/clickmask_adapters/docs/{page.name})" for page in GUIDE} <= set(
        re.findall(r"\([\w/.-]+\)", README)
    )


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.split()) <= 1500


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test
