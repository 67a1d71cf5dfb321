"""What is installed to serve, without torch: megabytes by package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.goals import Goal, Section

SHOWN = 8  # packages, the largest
NOT_TO_SERVE = {"torch", "segment-anything", "onnx", "torchvision"}


def needed(extra: str = "") -> set[str]:
    """The packages that `pip install clickmask`, or `clickmask[extra]`, brings, itself among them."""
    found: set[str] = set()
    waiting = [("clickmask", frozenset({extra} if extra else ()))]
    while waiting:
        name, extras = waiting.pop()
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": each}) for each in extras or {""}
            )
            own = canonicalize_name(requirement.name)
            if wanted and own not in found:
                waiting.append((own, frozenset(requirement.extras)))
    return found


def megabytes(name: str) -> float:
    """Of the files on the disk, compiled ones among them."""
    try:
        files = distribution(name).files or ()
    except PackageNotFoundError:
        return 0.0
    places = (file.locate() for file in files)
    return sum(place.stat().st_size for place in places if place.is_file()) / 1e6


def main() -> Section:
    bare, faster = needed(), needed("openvino")
    assert not (bare | faster) & NOT_TO_SERVE
    sizes = {name: megabytes(name) for name in faster}
    least, most = (sum(sizes[name] for name in names) for names in (bare, faster))
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:SHOWN]
    lines = [
        f"`pip install clickmask` is {least:.0f} MB, `clickmask[openvino]` {most:.0f} MB: OpenVINO, which",
        "encodes faster than ONNX Runtime, costs more than the bound leaves, so it is an extra. Neither",
        f"brings torch, which alone is {megabytes('torch'):.0f} MB in this environment.",
        "",
        "| package | MB |",
        "|---|---:|",
        *(f"| {name} | {sizes[name]:.0f} |" for name in largest),
        f"| {len(faster) - SHOWN} others | {most - sum(sizes[name] for name in largest):.0f} |",
        "",
        "The stretch is missed by what OpenCV weighs. Next idea: numpy and Pillow for the few operations",
        "that a click with SAM needs of it (resize, transpose), and OpenCV for the classic segmenters alone.",
    ]
    return Section(
        "\n".join(lines), [Goal("installed to serve, without OpenVINO", least, 500, 350, unit=" MB")]
    )


if __name__ == "__main__":
    print(main().text)
