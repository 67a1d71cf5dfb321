"""What leaves the project as a wheel, as its build configuration says it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clickmask.segmenters import builtin

ROOT = Path(__file__).parent.parent
PACKAGES = {
    ROOT / "backend/clickmask": "clickmask",
    ROOT / "adapters/clickmask_adapters": "clickmask_adapters",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
SAYS = ("MODEL_CARD.md", "NOTICE")
ANSWER = """
import pathlib
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import clickmask
from clickmask.inference.catalogue import Host
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.segmenters import builtin
from clickmask.types import Image, Prompt

assert clickmask.__file__.startswith(sys.argv[1]), clickmask.__file__
pixels = np.full((96, 128, 3), 40, np.uint8)
pixels[30:70, 40:90] = 200
pixels.flags.writeable = False
segmenter = builtin.load("", Host(WeightsFolder(pathlib.Path("none")), Runtimes(threads=1)))
mask = segmenter.decode(segmenter.encode(Image(pixels, "drawn")), Prompt(((65.0, 50.0),)))[0].mask
print(int(mask[30:70, 40:90].sum()), int(mask.sum()))
"""


def test_a_wheel_has_every_file_of_the_packages() -> None:
    inside = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    of_packages = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for folder, name in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    said = {f"{builtin.WEIGHTS.replace('.', '/')}/{name}" for name in (*builtin.FILES, *SAYS)}
    assert said <= of_packages <= inside


@pytest.mark.slow
def test_the_built_in_network_answers_from_an_unpacked_wheel(tmp_path: Path) -> None:
    wheel = next(Path(path) for path in WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "unpacked")
        licences = {Path(name).name for name in files.namelist() if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    for name in SAYS:
        inside = tmp_path / "unpacked" / builtin.WEIGHTS.replace(".", "/") / name
        assert inside.read_bytes() == resources.files(builtin.WEIGHTS).joinpath(name).read_bytes()
    command = [sys.executable, "-c", ANSWER, str(tmp_path / "unpacked")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    inside, everywhere = map(int, answer.stdout.split())
    assert inside > 0.95 * 40 * 50
    assert everywhere < 1.05 * 40 * 50


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def test_extras_are_what_users_need_and_groups_what_developers_do() -> None:
    trained = {"torch", "encoders", "transformers"}
    others = {"openvino", "cvat", "plot", "heic", "selfie", "postgresql", "label-studio-ml"}
    assert set(EXTRAS) == trained | others
    assert set(PROJECT["dependency-groups"]) == {"label-studio", "dev"}


def test_constraints_pin_what_make_install_takes() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = names([line for line in lines if line and not line.startswith("#")])
    taken = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    for extra in ("torch", "encoders", "transformers", "openvino", "cvat", "plot", "heic", "selfie"):
        taken += EXTRAS[extra]
    assert names(taken) <= pinned
