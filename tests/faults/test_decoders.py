"""A million mutated inputs to everything that reads foreign bytes: only documented errors come back.

CLICKMASK_FAULTS_SHARE=0.01 sends a hundredth of them, CLICKMASK_FAULTS_SEED=2 others.
"""

from __future__ import annotations

import base64
import io
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import pytest
from pydantic import ValidationError
from urllib3.response import HTTPResponse

from clickmask.datasets.coco_reader import sample_objects
from clickmask.errors import ImageUnavailable, InvalidInput, InvalidRequest, Refused, TooLarge
from clickmask.images import fetch
from clickmask.images.decode import ImageLimits, decode_image, picture_ending, readable_formats, upright_file
from clickmask.images.fetch import Fetcher, decode_base64, read_data_uri
from clickmask.labels.geometry import Geometry, geometry_to_rle
from clickmask.labels.submissions import Change, Submission, Unreadable, Unsized
from clickmask.masks.rle import Rle, mask_to_rle, rle_area, rle_to_mask, runs_to_counts
from clickmask.types import ImageRef, Prompt, Size
from clickmask_adapters.api.proposals import AnnotationsIn, ImagesIn, ProposalsIn
from clickmask_adapters.tools import _client
from clickmask_adapters.tools._json import parse_object, text_of
from clickmask_adapters.tools.cvat import labels as cvat_labels
from clickmask_adapters.tools.cvat import prompts
from clickmask_adapters.tools.cvat.mask_points import mask_to_points, points_to_mask
from clickmask_adapters.tools.label_studio import clicks, label_config, shapes
from clickmask_adapters.tools.label_studio import labels as label_studio_labels
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.routes import images_of
from support import CONTRACTS, drawn
from support.mutations import mutated_bytes, mutated_json

pytestmark = pytest.mark.faults
SHARE = float(os.environ.get("CLICKMASK_FAULTS_SHARE", "1"))
SEED = os.environ.get("CLICKMASK_FAULTS_SEED", "20261130")
MAX_INPUT_S = 5.0  # of a processor; most take less than a millisecond
SIZE = (48, 64)
CLIENT = LabelStudioClient("http://label-studio:8080/prefix", "key")
LIMITS = ImageLimits(2**20, 10**6)


@dataclass(frozen=True)
class Decoder:
    """What reads foreign bytes, genuine ones, and the errors that it may raise."""

    inputs: int
    read: Callable[[bytes], object]
    samples: Sequence[bytes]
    documented: tuple[type[Exception], ...]
    is_json: bool = False


# Label Studio


def bodies(tool: str, *patterns: str) -> list[bytes]:
    """Recorded requests."""
    paths = sorted(path for pattern in patterns for path in (CONTRACTS / tool).glob(pattern))
    return [orjson.dumps(orjson.loads(path.read_bytes())["request"]["body"]) for path in paths]


def configs() -> list[bytes]:
    recorded = [orjson.loads(body).get("label_config", "") for body in bodies("label_studio", "*_predict_*")]
    repeater = """<?xml version="1.0"?><View><Style><![CDATA[.a > .b {}]]></Style><!-- pages -->
    <Repeater on="$pages" indexFlag="{{idx}}"><Image name="i{{idx}}" value="$pages[{{idx}}].scan"/>
    <Brush name="b{{idx}}" toName="i{{idx}}"/><Labels name="l" toName="i{{idx}},x" smart="true">
    <Label value="Cat" alias="c" category="1"/></Labels></Repeater></View>"""
    several = """<View><Image name="i" valueList="$pages"/><Image name="j" value="https://h/$id-$n.png"/>
    <BitmaskLabels name="b" toName="i"><Label value="x"/></BitmaskLabels>
    <Polygon name="p" toName="j"/></View>"""
    return [text.encode() for text in dict.fromkeys([*recorded, repeater, several])]


def read_config(raw: bytes) -> None:
    config = label_config.parse(raw.decode("utf-8", "replace"))
    data = {"pages": ["/a.png", {"scan": "/b.png"}], "image": "/c.png", "id": 7, "n": 0.5, "": "/d.png"}
    for _ in config.shown(1, data):
        pass
    config = config.of_task(data)
    for name in [*config.images][:3]:
        for labels in ([], ["Cat", "Car"]):
            config.answers(name, "point", labels)


def read_click(raw: bytes) -> None:
    asked = parse_object(raw, "the request")
    for _, uri in images_of(asked):
        if uri[:5] not in ("data:",):
            CLIENT.image_ref(1, uri)
    config = label_config.parse(asked.get("label_config"))
    params = asked.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    clicks.request(context, config)


def read_changes(changes: Iterator[Change]) -> None:
    for change in changes:
        read = [change] if not isinstance(change, Unsized) else change.read(SIZE)
        for each in read:
            if isinstance(each, Unreadable):
                assert "cannot be read (" not in each.reason, each.reason
            elif isinstance(each, Submission):
                for region in each.regions[:2]:
                    rasterised(region.geometry, each.size or SIZE)


def rasterised(geometry: Geometry | None, size: Size) -> None:
    """The geometry drawn, as far as that is quick."""
    if geometry is not None and size[0] * size[1] <= 2**20:
        rle_area(geometry_to_rle(geometry, size))


def regions() -> list[bytes]:
    recorded = [
        orjson.loads(body)["annotation"]["result"] for body in bodies("label_studio", "*ANNOTATION_*")
    ]
    found = [result for results in recorded for result in results if "original_width" in result]
    mask = drawn.ring()
    size = {"original_height": mask.shape[0], "original_width": mask.shape[1]}
    brush = {"format": "rle", "rle": shapes.mask_to_brush_rle(mask).tolist()}
    corners = [[10, 10], [50, 10], [50.5, 70]]
    vertices = [
        {"id": str(number), "prevPointId": str(number - 1) if number else None, "x": x, "y": y}
        for number, (x, y) in enumerate(corners)
    ]
    curve = {"isBezier": True, "controlPoint1": {"x": 5, "y": 5}, "controlPoint2": {"x": 9, "y": 1}}
    values: dict[str, dict[str, Any]] = {
        "brush": brush,
        "bitmask": {"imageDataURL": shapes.mask_to_bit_mask(mask)},
        "polygon": {"points": corners, "closed": True},
        "vector": {"vertices": [*vertices[:2], vertices[2] | curve], "closed": True},
        "rectangle": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 30},
        "ellipse": {"x": 40, "y": 40, "radiusX": 10, "radiusY": 20, "rotation": 10},
    }
    found += [{"type": kind, "value": value, **size} for kind, value in values.items()]
    return [orjson.dumps(result) for result in found]


def read_region(raw: bytes) -> None:
    result = orjson.loads(raw)
    size = shapes.original_size(result) or SIZE
    rasterised(
        shapes.value_to_geometry(text_of(result["type"]).removesuffix("labels"), result["value"], size), size
    )


def read_event(raw: bytes) -> None:
    read_changes(label_studio_labels.changes(parse_object(raw, "the event")))


def read_brush(raw: bytes) -> None:
    shapes.brush_rle_to_mask(list(raw), SIZE)


def read_bit_mask(raw: bytes) -> None:
    shapes.bit_mask_to_mask(shapes.PREFIX + base64.b64encode(raw).decode(), SIZE)


def bit_masks() -> list[bytes]:
    masks = [shapes.mask_to_bit_mask(draw()) for draw in (drawn.disc, drawn.ring)]
    return [base64.b64decode(mask.removeprefix(shapes.PREFIX)) for mask in masks]


# CVAT


def read_invocation(raw: bytes) -> None:
    asked, text = prompts.split_image(raw)
    for prompt in prompts.pointed(asked).prompts(SIZE):
        prompt.require_inside(SIZE)
    decode_base64(text, LIMITS)


def read_meaning(raw: bytes) -> None:
    cvat_labels.meaning(parse_object(raw, "the event"))


def read_job(raw: bytes) -> None:
    content = cvat_labels.JobContent(**orjson.loads(raw))
    for each in cvat_labels.submissions(content):
        if isinstance(each, Submission):
            for region in each.regions[:2]:
                rasterised(region.geometry, each.size or SIZE)


def read_points(raw: bytes) -> None:
    points_to_mask(orjson.loads(raw), SIZE)


# Masks and datasets


def read_rle(raw: bytes) -> None:
    # As runs: each ends in the image, and the last one with it.
    ends = np.cumsum(np.frombuffer(raw, np.uint8).astype(np.int64))
    ends = np.append(ends[ends < SIZE[0] * SIZE[1]], SIZE[0] * SIZE[1])
    given: Rle = {"size": [*SIZE], "counts": runs_to_counts(np.diff(ends, prepend=0))}
    assert rle_area(given) == rle_to_mask(given).sum()
    rle_to_mask({"size": [*SIZE], "counts": raw.decode("latin-1")})


def coco() -> bytes:
    rle = mask_to_rle(drawn.ring())
    square = [[1, 1, 30, 1, 30, 30, 1, 30]]
    column = {"size": [48, 64], "counts": [100, 200, 48 * 64 - 300]}
    segmentations = [square, rle, column, [*square, [40.5, 3, 60, 3, 60, 40]]]
    return orjson.dumps(
        {
            "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": each}
                for number, each in enumerate(segmentations)
            ],
        }
    )


def read_coco(folder: Path, raw: bytes) -> None:
    path = folder / "annotations.json"
    path.write_bytes(raw)
    sample_objects(path, smallest=1)


# Images and addresses


def images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 13, 4), np.uint8)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    found: list[bytes] = []

    def save(mode: str, kind: str, **options: Any) -> None:
        raw = io.BytesIO()
        PIL.Image.fromarray(pixels).convert("RGB").convert(mode).save(raw, kind, **options)
        found.append(raw.getvalue())

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        save(mode, "png", exif=turned)
    for mode in ("L", "RGB", "CMYK"):
        save(mode, "jpeg", exif=turned)
        save(mode, "jpeg", progressive=True)
        save(mode, "tiff")
        save(mode, "tiff", compression="tiff_lzw")
    for compression in ("jpeg", "tiff_adobe_deflate", "packbits"):
        save("RGB", "tiff", compression=compression)
    save("F", "tiff")
    save("I;16", "tiff")
    save("1", "tiff", compression="group4")
    save("RGB", "webp", lossless=True, exif=turned)
    save("RGBA", "webp")
    for mode in ("1", "L", "P", "RGB"):
        save(mode, "bmp")
    save("P", "gif", transparency=0)
    save("P", "gif", save_all=True, append_images=[PIL.Image.new("P", (13, 9))])
    for kind in ("avif", "heif"):
        if kind.upper() in readable_formats():
            save("RGB", kind)
    return found


def read_image(raw: bytes) -> None:
    picture_ending(raw)
    decode_image(raw, LIMITS)
    upright_file(raw)


def read_base64(raw: bytes) -> None:
    decode_base64(raw, LIMITS)


def read_address(roots: Path, raw: bytes) -> None:
    uri = raw.decode("utf-8", "replace")
    label_studio_labels._basename(uri, "7")
    if uri[:5].lower() == "data:":
        read_data_uri(uri, LIMITS)
    elif uri[:5].lower() == "file:":
        Fetcher(roots=[roots], limits=LIMITS).fetch(ImageRef(uri))
    else:
        fetch._prepared(CLIENT.image_ref(7, uri).uri, {})


ADDRESSES = [
    *(
        b"https://host.example:8443/a%20b/c.png?d=e&f=%00#g",
        b"http://user@[::1]:80/x",
        b"http://127.1/",
        b"//host/a",
    ),
    *(b"/data/upload/3/e9473b6b-a photo.jpg", b"/data/local-files/?d=a/b.png", b"s3://bucket/key#1.png"),
    *(
        b"/tasks/3/presign/?fileuri=aHR0cHM6Ly9ob3N0L2EucG5n",
        b"/storage-data/uploaded/?filepath=upload/1/a.png",
    ),
    *(
        b"file:///etc/passwd",
        b"file://localhost/a.png",
        b"data:image/png;base64,iVBORw0KGgo=",
        b"data:,%41%42",
    ),
    *(
        b"http://label-studio:8080/prefix/data/upload/1/x.png",
        b"azure-blob://c/a.png",
        "https://bücher.example/ä".encode(),
    ),
]

# Our own API


def asked() -> list[bytes]:
    image = {"data": base64.b64encode(images()[0]).decode()}
    prompt = {"foreground": [[5, 5]], "background": [[1, 1.5]], "box": [0, 0, 9, 9]}
    return [
        orjson.dumps(
            {"image": image, "prompt": prompt, "segmenter": "builtin", "want": ["rle"], "min_iou": 0.9}
        ),
        orjson.dumps(
            {"image": {"url": "https://host/a.png"}, "prompt": {"foreground": [[5, 5]]}, "max_points": 9}
        ),
        orjson.dumps({"image": {"digest": "ab" * 32}, "annotator": "everything", "min_score": 0.5}),
        orjson.dumps({"image": image}),
    ]


def read_asked(raw: bytes) -> None:
    for kind in (ProposalsIn, AnnotationsIn, ImagesIn):
        try:
            given = kind.model_validate_json(raw)
        except ValidationError as error:
            assert error.error_count() < 50_000
            continue
        given.image.ref()
        if isinstance(given, ProposalsIn):
            of = given.prompt
            Prompt(tuple(of.foreground), tuple(of.background), of.box).require_inside(SIZE)


def read_reason(raw: bytes) -> None:
    answer = HTTPResponse(headers={"Content-Type": "text/plain"}, reason="Bad Request")
    assert len(_client._reason(answer, raw)) <= _client.MAX_REASON_CHARS


TOOL = (InvalidRequest, InvalidInput)
IMAGE = (InvalidInput, TooLarge)
DAMAGE = (
    InvalidRequest,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)  # of a part, which is then left out


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    folder = tmp_path_factory.mktemp("dataset")
    PIL.Image.new("RGB", (64, 48)).save(folder / "a.png")
    rles = [mask_to_rle(draw())["counts"].encode() for draw in drawn.MASKS.values()]
    brushes = [shapes.mask_to_brush_rle(draw()).tobytes() for draw in (drawn.disc, drawn.ring)]
    points = [orjson.dumps(mask_to_points(draw())) for draw in (drawn.disc, drawn.ring)]
    json, of_studio, of_cvat = (
        partial(Decoder, is_json=True),
        partial(bodies, "label_studio"),
        partial(bodies, "cvat"),
    )
    clicked, called = of_studio("*_predict_*"), of_cvat("0[3-9]*.json", "1*.json")
    happened, changed = of_studio("*_webhook_*"), of_cvat("webhook_*.json")
    fetching = (Refused, ImageUnavailable, *IMAGE)
    found = {
        "label configs": Decoder(120_000, read_config, configs(), TOOL),
        "clicks of Label Studio": json(120_000, read_click, clicked, (*TOOL, Refused)),
        "events of Label Studio": json(60_000, read_event, happened, (InvalidRequest,)),
        "regions of Label Studio": json(100_000, read_region, regions(), DAMAGE),
        "brushes": Decoder(80_000, read_brush, brushes, (ValueError,)),
        "bit masks": Decoder(30_000, read_bit_mask, bit_masks(), (ValueError,)),
        "calls of CVAT": json(120_000, read_invocation, called, (*TOOL, TooLarge)),
        "events of CVAT": json(50_000, read_meaning, changed, (InvalidRequest,)),
        "jobs of CVAT": json(50_000, read_job, [cvat_job()], DAMAGE),
        "masks of CVAT": json(40_000, read_points, points, (ValueError,)),
        "run lengths": Decoder(50_000, read_rle, rles, (ValueError,)),
        "COCO files": json(10_000, partial(read_coco, folder), [coco()], (InvalidRequest,)),
        "images": Decoder(70_000, read_image, images(), IMAGE),
        "base64": Decoder(30_000, read_base64, [base64.b64encode(raw) for raw in images()], IMAGE),
        "addresses": Decoder(40_000, partial(read_address, folder), ADDRESSES, fetching),
        "requests of our API": json(20_000, read_asked, asked(), TOOL),
        "reasons of tools": json(10_000, read_reason, [b'{"detail":["no",{"url":"<b>x</b>"}]}'], ()),
    }
    assert sum(decoder.inputs for decoder in found.values()) == 1_000_000
    return found


def cvat_job() -> bytes:
    box = [1.0, 1.0, 9.0, 9.0]
    shape = {"rotation": 0.0, "frame": 0, "label_id": 1, "group": 0, "z_order": 0, "outside": False}
    kinds: dict[str, list[Any]] = {
        "mask": mask_to_points(drawn.ring()),
        "rectangle": box,
        "ellipse": box,
        "points": [1.0, 1.0],
        "polygon": [1.0, 1.0, 9.0, 1.0, 9.0, 9.0],
    }
    every = [
        {"id": number, "type": kind, "points": points, **shape}
        for number, (kind, points) in enumerate(kinds.items())
    ]
    every += [{**every[-1], "id": 8 + number, "group": 5} for number in range(2)]
    keyframes = [{"id": number, "type": "rectangle", "points": box, "frame": number} for number in (0, 2)]
    frames = [{"name": f"images/{number}.png", "height": 48, "width": 64} for number in range(3)]
    job = {
        **{"id": 3, "task_id": 30, "project_id": 1, "start_frame": 0, "stop_frame": 2, "state": "completed"},
        **{"stage": "annotation", "type": "annotation", "dimension": "2d", "assignee": {"username": "a"}},
        "updated_date": "2026-11-22T17:45:26.980658Z",
    }
    meta = {"frames": frames, "deleted_frames": [1], "included_frames": [0, 2], "start_frame": 0}
    tracks = [{"id": 1, "label_id": 1, "group": 0, "shapes": keyframes}]
    return orjson.dumps(
        {
            "job": job,
            "meta": meta | {"frame_filter": "step=1"},
            "labels": [{"id": 1, "name": "cat", "type": "any"}],
            "annotations": {"shapes": every, "tracks": tracks},
        }
    )


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # as `decode` sets it
def test_decoders_raise_only_documented_errors(
    decoders: dict[str, Decoder], capsys: pytest.CaptureFixture[str]
) -> None:
    undocumented: dict[str, str] = {}
    slow: list[str] = []
    for name, decoder in decoders.items():
        chance = random.Random(f"{SEED} {name}")
        count, accepted, raised, longest = max(1, round(decoder.inputs * SHARE)), 0, Counter[str](), 0.0
        began = time.perf_counter()
        for _ in range(count):
            sample = chance.choice(decoder.samples)
            if decoder.is_json and chance.random() < 0.75:
                raw = mutated_json(chance, sample)
            else:
                raw = mutated_bytes(chance, sample, decoder.samples)
            started = time.thread_time()
            try:
                decoder.read(raw)
                accepted += 1
            except decoder.documented as error:
                raised[type(error).__name__] += 1
            except orjson.JSONDecodeError:  # raised by what stands here before a decoder
                raised["JSONDecodeError"] += 1
            except Exception as error:  # noqa: BLE001
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{name}: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
                undocumented.setdefault(kind, f"{str(error)[:200]} for {raw[:300]!r}")
                raised[kind] += 1
            took = time.thread_time() - started
            longest = max(longest, took)
            if took > MAX_INPUT_S:
                slow.append(f"{name}: {took:.1f} s for {raw[:300]!r}")
        with capsys.disabled():
            rate = 1e6 * (time.perf_counter() - began) / count
            others = ", ".join(f"{number} {kind}" for kind, number in raised.most_common())
            times = f"{count} in {rate:.0f} us each, {1000 * longest:.0f} ms at most"
            print(f"\n{name}: {times}; {accepted} read, {others}", end="")
    assert not undocumented, "\n".join(f"{kind}: {what}" for kind, what in undocumented.items())
    assert not slow, "\n".join(slow)
