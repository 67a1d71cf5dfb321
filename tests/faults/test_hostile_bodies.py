"""Bodies of at most 1 MB that are made to keep the server busy, while somebody asks for its health."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import pytest

from clickmask.masks.rle import box_to_rle
from clickmask.types import Mask
from support import pictures
from support.served import Server, serving

pytestmark = pytest.mark.faults
EXISTING_HOME = Path(__file__).parent.parent / "support" / "existing_home.tar.xz"
MAX_BODY = 2**20
MAX_HEALTH_S = 1.0
TRIES = 3  # the machine may be busy with something else
SECRET = "of the webhook"
NOISY = "2.1"  # the project whose segmenter draws ragged masks
IMAGE = pictures.png_data_uri()
HEIGHT, WIDTH = pictures.SIZE
KEYPOINT = '<KeyPoint name="k" toName="img" smart="true"/>'
CONFIG = f'<View><Image name="img" value="$image"/><Brush name="b" toName="img"/>{KEYPOINT}</View>'
Body = tuple[str, Any]  # a path, and what becomes JSON


class Health(threading.Thread):
    """Asks for the server's health without a pause, on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._at, self._done = urlsplit(url).netloc, threading.Event()
        self.longest, self.count = 0.0, 0

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._at, timeout=120)
        while not self._done.is_set():
            began = time.perf_counter()
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert answer.read() and answer.status == 200
            self.longest, self.count = max(self.longest, time.perf_counter() - began), self.count + 1
            self._done.wait(0.002)
        connection.close()

    def stop(self) -> None:
        self._done.set()
        self.join(120)


def post(url: str, path: str, content: Any) -> tuple[int, bytes]:
    body = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    assert len(body) <= MAX_BODY, f"{len(body)} bytes"
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Signature-256": signature, "User-Agent": "CVAT/2.73.0"}
    if path.startswith("cvat:"):
        path, headers["X-Nuclio-Function-Name"] = "/api/function_invocations", path.removeprefix("cvat:")
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def wait_for_reader(url: str) -> None:
    """Return once all events are read."""
    while True:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
        connection.request("GET", "/v1/status")
        intake = json.loads(connection.getresponse().read())["intake"]
        connection.close()
        if not intake["waiting"]:
            return
        time.sleep(0.2)


def repeated(text: str, more: int = 2000) -> str:
    """`text` as often as it fits into a body beside `more` other bytes, once it is JSON."""
    return text * ((MAX_BODY - more) // len(json.dumps(text)[1:-1]))


def listed(row: Any, more: int = 2000) -> list[Any]:
    """A list of `row` as often as it fits into a body beside `more` other bytes."""
    return [row] * ((MAX_BODY - more) // (len(json.dumps(row, separators=(",", ":"))) + 1))


def nested(opening: str, closing: str, depth: int) -> bytes:
    return (opening * depth + closing * depth).encode()


# Label Studio


def predict(config: str = CONFIG, marks: list[Any] | None = None, data: Any = None) -> Body:
    task = {"id": 1, "data": {"image": IMAGE} if data is None else data}
    context = {"result": [mark()] if marks is None else marks}
    return "/predict", {
        "tasks": [task],
        "project": "1.1",
        "label_config": config,
        "params": {"context": context},
    }


def mark(**changes: Any) -> dict[str, Any]:
    return {
        "id": "r",
        "type": "keypoint",
        "from_name": "k",
        "to_name": "img",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {"x": 50, "y": 50, "width": 1},
        **changes,
    }


def accepted(result: Any, config: str = CONFIG, **task: Any) -> Body:
    annotation = {"id": 1, "result": result, "updated_at": "2026-01-01T00:00:00Z"}
    return "/webhook", {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 1, "label_config": config},
        "task": {"id": 1, "project": 1, "data": {"image": IMAGE}, **task},
        "annotation": annotation,
    }


def region(kind: str, value: Any, **changes: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"id": "r", "type": kind, "from_name": "b", "to_name": "img", "value": value, **size, **changes}


def full_brush(height: int, width: int) -> list[int]:
    """The fewest bytes of a brush that covers so many pixels: runs of 2**16 values."""
    bits = f"{4 * height * width:032b}" + f"{7:05b}" + "1111" * 4
    left = 4 * height * width
    while left:
        run = min(left, 2**16)
        bits += f"111{run - 1:016b}{255:08b}"
        left -= run
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def bit_mask(height: int, width: int) -> str:
    raw = io.BytesIO()
    PIL.Image.fromarray(np.zeros((height, width, 4), np.uint8)).save(raw, "png", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()


def controls(count: int) -> str:
    tags = '<Brush name="b" toName="img"/>' * count
    return CONFIG.replace("</View>", tags + "</View>")


def many_labels() -> Body:
    count = 20_000
    names = [f"n{number}" for number in range(count)]
    labels = "".join(f'<Label value="{name}"/>' for name in names[:9000])
    brush = f'<BrushLabels name="c" toName="img">{labels}</BrushLabels>'
    config = CONFIG.replace("</View>", brush + "</View>")
    return predict(config, [mark(type="keypointlabels", value={"x": 1, "y": 1, "keypointlabels": names})])


def repeater(count: int) -> Body:
    config = '<View><Repeater on="$pages"><Image name="i{{idx}}" value="$pages[{{idx}}]"/></Repeater></View>'
    tasks = [{"id": number, "data": {"pages": [0] * count}} for number in range(MAX_BODY // (2 * count + 40))]
    return "/predict", {"tasks": tasks, "project": "1.1", "label_config": config}


def bulk() -> Body:
    """Many annotations of tasks of many images, none of which is there."""
    images = "".join(f'<Image name="i{number}" value="$x"/>' for number in range(5000))
    rows = [{"id": number, "task": number, "result": []} for number in range(10_000)]
    tasks = [{"id": number, "data": {}} for number in range(10_000)]
    return "/webhook", {
        "action": "ANNOTATIONS_CREATED",
        "project": {"id": 1, "label_config": f"<View>{images}</View>"},
        "task": tasks,
        "annotation": rows,
    }


def zigzag(count: int) -> list[list[float]]:
    return [[number % 97 + 0.3, 100.0 * (number % 2)] for number in range(count)]


# Our own API and CVAT


def proposals(image: str, **changes: Any) -> Body:
    asked = {"image": {"data": image}, "prompt": {"foreground": [[40, 30]]}, **changes}
    return "/v1/proposals", asked


def noise(side: int) -> str:
    """A PNG of noise, in base64: masks of it have as many parts as can be."""
    pixels = np.random.default_rng(0).integers(0, 2, (side, side)).astype(bool)
    return encoded(PIL.Image.fromarray(pixels), "png")


def encoded(image: PIL.Image.Image, kind: str, **options: Any) -> str:
    raw = io.BytesIO()
    image.save(raw, kind, **options)
    return base64.b64encode(raw.getvalue()).decode()


def plain(mode: str, kind: str, side: int = 9990, **options: Any) -> Body:
    """A click on a plain picture of nearly 100 Mpx."""
    return proposals(encoded(PIL.Image.new(mode, (side, side)), kind, **options))


def on_noise(tags: str) -> Body:
    """A box round noise in Label Studio, to be answered with these tags."""
    box = '<Rectangle name="k" toName="img" smart="true"/>'
    config = f'<View><Image name="img" value="$image"/>{box}{tags}</View>'
    drawn = {"x": 0, "y": 0, "width": 100, "height": 100}
    whole = mark(type="rectangle", value=drawn, original_width=2300, original_height=2300)
    path, asked = predict(config, [whole], {"image": "data:image/png;base64," + noise(2300)})
    return path, asked | {"project": NOISY}


def interact(**changes: Any) -> dict[str, Any]:
    return {"image": pictures.png_base64(), "pos_points": [[40, 30]], "neg_points": [], **changes}


# Labels, masks, and a project with a trained model


def brought(labels: list[Any], image: str | None = None) -> Body:
    content = {"key": "1", "image": {"data": image or SMALL}, "name": "1.png", "labels": labels}
    return "/v1/projects/page/1/labels", content


def label(geometry: dict[str, Any]) -> dict[str, Any]:
    return {"category": "cell", "geometry": geometry}


def rectangle(**more: Any) -> dict[str, Any]:
    return {"kind": "rectangle", "box": [1, 2, 30, 40], **more}


def polygon(*rings: list[Any]) -> dict[str, Any]:
    return {"kind": "polygon", "rings": rings}


def brush(height: int, width: int, counts: str) -> dict[str, Any]:
    return {"kind": "brush", "rle": {"size": [height, width], "counts": counts}}


def deep(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def large_png() -> str:
    return encoded(PIL.Image.new("L", (9990, 9990)), "png")


def refined(height: int, width: int, counts: str, image: str | None = None, **more: Any) -> Body:
    mask = {"size": [height, width], "counts": counts}
    return proposals(image or SMALL, prompt={"mask": mask}, **more)


def small_mask(side: int) -> str:
    """The run lengths of a small square in the middle of a large one."""
    middle = side / 2
    return box_to_rle((middle, middle, middle + 300, middle + 300), (side, side))["counts"]


def large_ellipse(number: int) -> dict[str, Any]:
    value = {"x": 50, "y": 50, "radiusX": 45, "radiusY": 45, "rotation": 0}
    size = {"original_width": 9990, "original_height": 9990}
    return mark(id=f"{number}", type="ellipse", from_name="e", value=value, **size)


def squares(side: int, step: int) -> str:
    """A grid of squares, each of which the model takes for an object."""
    bright = np.arange(side) % step < step // 2
    return green(np.outer(bright, bright))


def green(mask: Mask) -> str:
    """A PNG that is green in the mask and dark red elsewhere: the model takes the strongest colour."""
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 100, 255 * mask
    return encoded(PIL.Image.fromarray(pixels), "png")


def green_noise() -> str:
    return green(np.random.default_rng(0).integers(0, 2, (1400, 1400)).astype(bool))


def prelabelled(image: str) -> Body:
    labels = '<Label value="cell"/><Label value="nucleus"/>'
    drawn = "".join(f'<{kind} name="{kind}" toName="i">{labels}</{kind}>' for kind in DRAWN)
    config = f'<View><Image name="i" value="$image"/>{drawn}</View>'
    task = {"id": 1, "data": {"image": "data:image/png;base64," + image}}
    return "/predict", {"tasks": [task], "project": TRAINED, "label_config": config, "params": {}}


def annotated(image: str, annotator: str = "trained:label_studio-7") -> Body:
    return "/v1/annotations", {"image": {"data": image}, "annotator": annotator, "min_iou": 1}


TRAINED = "7.1"  # the project that has a model
DETECTOR = "clickmask-detect-trained-label_studio-7"
DRAWN = ("BrushLabels", "PolygonLabels", "BitmaskLabels")
LARGE_ELLIPSE = {"kind": "ellipse", "centre": [5000, 5000], "radii": [4900, 4000], "rotation": 20}
SMALL = pictures.png_base64()
TURNED = PIL.Image.Exif()
TURNED[0x0112] = 6
CONTROL = '<A name="a" toName="img">'
ATTACKS: dict[str, Callable[[], Body]] = {
    "nothing": lambda: predict(),
    "config: comments": lambda: predict("<View>" + repeated("<!--") + "</View>"),
    "config: sections": lambda: predict("<View>" + repeated("<![CDATA[") + "</View>"),
    "config: tags": lambda: predict("<View>" + repeated("<a/>") + "</View>"),
    "config: nested controls": lambda: predict("<View>" + CONTROL * 9000 + "</A>" * 9000 + "</View>"),
    "config: attributes": lambda: predict(
        "<View " + " ".join(f"a{number}=''" for number in range(80_000)) + "/>"
    ),
    "config: images": lambda: predict(
        CONFIG.replace("</View>", repeated("<Image name='a' value='$b'/>") + "</View>")
    ),
    "config: brushes": lambda: predict(controls(18_000)),
    "config: ten brushes": lambda: predict(controls(8)),
    "config: labels": many_labels,
    "config: repeated": lambda: repeater(6000),
    "config: template": lambda: predict(
        '<View><Image name="img" value="' + "$x" * 150_000 + '"/><Brush name="b" toName="img"/></View>',
        data={"x": "y" * 500_000},
    ),
    "predict: marks": lambda: predict(marks=listed(mark(id=None))),
    "predict: marks of one id": lambda: predict(marks=listed(mark())),
    "predict: points": lambda: predict(marks=[mark(id=str(number)) for number in range(900)]),
    "predict: deep": lambda: ("/predict", nested('{"tasks":[', "]}", 50_000)),
    "predict: deep, but read": lambda: ("/predict", b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "predict: tasks": lambda: (
        "/predict",
        {"tasks": listed({"id": 1, "data": {}}), "project": 1, "label_config": CONFIG},
    ),
    "setup: text": lambda: ("/setup", {"project": "1", "extra_params": "[" * 1_000_000}),
    "setup: a long name": lambda: ("/setup", {"project": "1", "extra_params": {"segmenter": "x" * 10**6}}),
    "webhook: a brush that is too large": lambda: accepted(
        [
            region(
                "brush",
                {"rle": full_brush(16_000, 16_000)},
                original_width=16_000,
                original_height=16_000,
            )
        ]
    ),
    "webhook: a bit mask that is too large": lambda: accepted(
        [
            region(
                "bitmask",
                {"imageDataURL": bit_mask(12_000, 12_000)},
                original_width=12_000,
                original_height=12_000,
            )
        ]
    ),
    "webhook: texts for a brush": lambda: accepted(
        [region("brush", {"rle": ["x" * 400_000, *["a"] * 90_000]})]
    ),
    "webhook: a polygon up and down": lambda: accepted([region("polygon", {"points": zigzag(60_000)})]),
    "webhook: a polygon up and down a large image": lambda: accepted(
        [region("polygon", {"points": zigzag(20_000)}, original_width=9000, original_height=9000)],
        data={"image": "data:image/png;base64," + noise(1)},
    ),
    "webhook: regions of one id": lambda: accepted(
        [each for _ in range(2600) for each in (region("rectangle", {}), region("labels", {"labels": ["x"]}))]
    ),
    "webhook: damaged regions": lambda: accepted(listed(region("rectangle", {}))),
    "webhook: vertices": lambda: accepted(
        [
            region(
                "vector",
                {
                    "closed": True,
                    "vertices": [
                        {
                            "id": n,
                            "prevPointId": n - 1 if n else None,
                            "x": n % 100,
                            "y": n % 7,
                            "isBezier": True,
                        }
                        for n in range(14_000)
                    ],
                },
            )
        ]
    ),
    "webhook: a long name": lambda: accepted([], data={"image": "/data/upload/1/" + "x" * 900_000}),
    "webhook: many annotations": bulk,
    "proposals: points": lambda: proposals(SMALL, prompt={"foreground": listed([1, 1], 3000)}),
    "proposals: no points": lambda: proposals(SMALL, prompt={"foreground": listed([], 3000)}),
    "proposals: texts for points": lambda: proposals(SMALL, prompt={"foreground": listed(["x", "y"], 3000)}),
    "proposals: unknown members": lambda: proposals(SMALL, **{f"a{n}": 1 for n in range(80_000)}),
    "proposals: deep": lambda: ("/v1/proposals", nested("[", "]", 500_000)),
    "proposals: digits": lambda: ("/v1/proposals", b'{"image":' + b"1" * 1_000_000 + b"}"),
    "proposals: wanted": lambda: proposals(SMALL, want=listed("rle", 3000)),
    "proposals: a thousand points": lambda: proposals(
        SMALL, prompt={"foreground": [[n % 80, n % 60] for n in range(1000)]}
    ),
    "proposals: base64": lambda: proposals("-" * 1_000_000),
    "proposals: a data address": lambda: (
        "/v1/proposals",
        {"image": {"url": "data:," + "%41" * 1300}, "prompt": {}},
    ),
    **{
        f"noise for {segmenter}": lambda segmenter=segmenter: proposals(
            noise(2300), segmenter=segmenter, min_iou=1, prompt={"box": [0, 0, 2300, 2300]}
        )
        for segmenter in ("builtin", "threshold", "region_growing", "contours", "grabcut")
    },
    "a large picture: 1 bit": lambda: plain("1", "png"),
    "a large picture: grey": lambda: plain("L", "png"),
    "a large picture: grey, turned": lambda: plain("L", "png", exif=TURNED),
    "a large picture: 16 bits": lambda: plain("I;16", "png"),
    "a large picture: transparent": lambda: plain("LA", "png"),
    "a large picture: palette": lambda: plain("P", "gif"),
    "a large picture: TIFF": lambda: plain("L", "tiff", compression="tiff_adobe_deflate"),
    "a large picture: WebP": lambda: plain("RGB", "webp", lossless=True, quality=0, method=0),
    "a large picture: JPEG": lambda: plain("L", "jpeg", 7500, quality=1),
    **{
        f"noise for {name}": lambda tag=tag: on_noise(tag * 8)
        for name, tag in (
            ("eight brushes", '<Brush name="b" toName="img"/>'),
            ("eight polygons", '<Polygon name="b" toName="img"/>'),
            ("eight bit masks", '<Bitmask name="b" toName="img"/>'),
        )
    },
    "noise for CVAT": lambda: (
        "cvat:clickmask-threshold",
        interact(image=noise(2300), pos_points=[], obj_bbox=[[0, 0], [2300, 2300]]),
    ),
    "cvat: points": lambda: (
        "cvat:clickmask-builtin",
        interact(pos_points=[[40, 30]] * 1000, obj_bbox=[[n % 2 * 70, n % 2 * 50] for n in range(200)]),
    ),
    "cvat: more points": lambda: ("cvat:clickmask-builtin", interact(pos_points=listed([1, 1], 3000))),
    "cvat: images": lambda: (
        "cvat:clickmask-builtin",
        ('{"image":  ' + repeated('"image"  ')).encode()[:MAX_BODY],
    ),
    "cvat: base64": lambda: ("cvat:clickmask-builtin", interact(image="-" * 1_000_000)),
    "labels: none is like any": lambda: brought([{}] * 10_000),
    "labels: too many": lambda: brought([1] * 400_000),
    "labels: a deep member": lambda: brought([label(rectangle(x=deep(900)))]),
    "labels: half of a letter": lambda: brought([label(rectangle(x="\ud800"))]),
    "labels: a million numbers": lambda: brought([label(polygon([1] * 500_000))]),
    "labels: points": lambda: brought([label(polygon([[1, 1]] * 170_000))]),
    "labels: up and down": lambda: brought([label(polygon(zigzag(60_000)))]),
    "labels: rings": lambda: brought([label(polygon(*listed([[1, 1], [70, 2], [3, 50]])))]),
    "labels: brushes of one pixel": lambda: brought([label(brush(60, 80, "0" * 900_000))]),
    "labels: a brush that is too large": lambda: brought([label(brush(10**9, 10**9, "0" * 900_000))]),
    "labels: ellipses on a large picture": lambda: brought([label(LARGE_ELLIPSE)] * 4, large_png()),
    "mask: of another size": lambda: refined(10**9, 10**9, "0"),
    "mask: long": lambda: refined(60, 80, "0" * 1_000_000),
    "mask: ragged": lambda: refined(60, 80, "0" + "1" * 4799 + "1"),
    "mask: of a large picture, with a second look": lambda: refined(
        9990, 9990, small_mask(9990), large_png(), controls={"second_look": True, "smooth": 5}
    ),
    "second look: at noise": lambda: proposals(noise(2300), controls={"second_look": True}),
    "second look: a list": lambda: proposals(SMALL, controls={"second_look": listed("x")}),
    "predict: ellipses on a large picture": lambda: predict(
        CONFIG.replace("</View>", '<Ellipse name="e" toName="img" smart="true"/></View>'),
        [large_ellipse(number) for number in range(2000)],
    ),
    "trained: noise in Label Studio": lambda: prelabelled(green_noise()),
    "trained: objects in Label Studio": lambda: prelabelled(squares(2000, 40)),
    "trained: noise in the API": lambda: annotated(green_noise()),
    "trained: objects in the API": lambda: annotated(squares(2000, 40)),
    "trained: objects of a large picture in the API": lambda: annotated(squares(9900, 600)),
    "trained: a long name": lambda: annotated(SMALL, annotator="trained:" + "x" * 900_000),
    "trained: noise in CVAT": lambda: (f"cvat:{DETECTOR}", {"image": green_noise()}),
    "trained: objects in CVAT": lambda: (f"cvat:{DETECTOR}", {"image": squares(2000, 40)}),
    "trained: a deep threshold in CVAT": lambda: (
        f"cvat:{DETECTOR}",
        {"image": SMALL, "threshold": deep(900)},
    ),
    "cvat: an event": lambda: (
        "/webhooks/cvat",
        {"event": "update:job", "job": {"id": 1, "x": listed([], 3000)}},
    ),
    "cvat: a deep event": lambda: ("/webhooks/cvat", nested('{"event":', "}", 100_000)),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("folder")
    with tarfile.open(EXISTING_HOME) as archive:
        archive.extractall(folder, filter="data")
    with serving(folder / "home", CVAT_WEBHOOK_SECRET=SECRET, LOG_LEVEL="info") as started:
        post(started.url, *ATTACKS["nothing"]())  # the network is loaded
        post(started.url, "/setup", {"project": NOISY, "extra_params": {"segmenter": "threshold"}})
        yield started


@contextmanager
def asked_for_health(url: str) -> Iterator[Health]:
    health = Health(url)
    health.start()
    try:
        yield health
    finally:
        health.stop()


@pytest.mark.parametrize("attack", ATTACKS)
def test_health_is_answered_within_a_second_whatever_is_sent(
    attack: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = ATTACKS[attack]()
    said = len(server.lines)
    for _ in range(TRIES):
        with asked_for_health(server.url) as health:
            began = time.perf_counter()
            status, answer = post(server.url, path, content)
            answered = time.perf_counter() - began
            wait_for_reader(server.url)
            took = time.perf_counter() - began
        with capsys.disabled():
            times = f"{status} in {answered:.1f} s, read after {took:.1f} s, /health {health.longest:.3f} s"
            print(f"\n{attack}: {times}, {len(answer)} bytes", end=" ")
        if health.longest < MAX_HEALTH_S:
            break
    assert status != 500, answer
    assert health.longest < MAX_HEALTH_S
    assert "Traceback" not in "".join(server.lines[said:])
