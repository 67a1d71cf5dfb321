"""The pattern of Label Studio's own example of Segment Anything, as a server to be measured against.

One SamPredictor, which holds one image, shared by eight threads without a lock; a cache that knows
which image that is; `set_image` for any other; masks written by label-studio-sdk's `mask2rle`.
`python -m benchmarks.peer CHECKPOINT --port PORT`. A Flask app under waitress with eight threads, as
the example runs under gunicorn with eight.
"""

from __future__ import annotations

import sys
import urllib.request
import uuid
from typing import Any

import cv2
import flask
import numpy as np
import waitress

from clickmask.segmenters._sam.torch_networks import import_segment_anything
from support.label_studio_sdk_oracle import brush_module

brush = brush_module()
THREADS = 8


class OneImagePredictor:
    """What all threads share: the predictor, and the address of the image that was set last."""

    def __init__(self, checkpoint: str) -> None:
        library = import_segment_anything()
        self._predictor = library.SamPredictor(library.sam_model_registry["vit_b"](checkpoint=checkpoint))
        self._cached = ""

    def predict(self, address: str, points: Any, labels: Any, box: Any) -> tuple[np.ndarray, float]:
        if address != self._cached:
            with urllib.request.urlopen(address) as answer:
                raw = np.frombuffer(answer.read(), np.uint8)
            self._predictor.set_image(cv2.cvtColor(cv2.imdecode(raw, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
            self._cached = address
        masks, scores, _ = self._predictor.predict(
            point_coords=np.array(points, np.float32) if points else None,
            point_labels=np.array(labels, np.float32) if labels else None,
            box=np.array(box, np.float32) if box else None,
            multimask_output=False,
        )
        return masks[0].astype(np.uint8), float(scores[0])


def answer(predictor: OneImagePredictor, asked: dict[str, Any]) -> dict[str, Any]:
    context = asked["params"]["context"]["result"]
    width, height = context[0]["original_width"], context[0]["original_height"]
    points, labels, box, label = [], [], None, ""
    for result in context:
        value = result["value"]
        x, y = value["x"] * width / 100, value["y"] * height / 100
        label = value[result["type"]][0]
        if result["type"] == "keypointlabels":
            points.append([int(x), int(y)])
            labels.append(int(result["is_positive"]))
        else:
            across, down = value["width"] * width / 100, value["height"] * height / 100
            box = [int(x), int(y), int(x + across), int(y + down)]
    mask, score = predictor.predict(asked["tasks"][0]["data"]["image"], points, labels, box)
    region = {
        "id": str(uuid.uuid4())[:4],
        "from_name": "brush",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush.mask2rle(mask * 255), "brushlabels": [label]},
        "score": score,
        "type": "brushlabels",
    }
    return {"results": [{"result": [region], "model_version": "peer", "score": score}]}


def create_app(predictor: OneImagePredictor) -> flask.Flask:
    app = flask.Flask(__name__)

    @app.post("/predict")
    def predict() -> flask.Response:
        return flask.jsonify(answer(predictor, flask.request.get_json()))

    return app


def main() -> None:
    checkpoint, _, port = sys.argv[1:]
    app = create_app(OneImagePredictor(checkpoint))
    server = waitress.create_server(app, host="127.0.0.1", port=int(port), threads=THREADS)
    print(f"http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
