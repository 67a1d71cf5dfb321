"""clickmask inside `label-studio-ml start`, for people who run their backends with it.

Only a user's `model.py` imports this module, as it needs label-studio-ml: version 2, which is on no index, or
1.0.9, which is; comments tell which. `clickmask serve` is faster, asks for its secret and gets every event.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

import atexit
import functools
import threading
from typing import Any

import flask
import orjson
from label_studio_ml.exceptions import AnswerException
from label_studio_ml.model import LabelStudioMLBase

from clickmask.errors import ClickmaskError
from clickmask_adapters.home import Home
from clickmask_adapters.server import failures
from clickmask_adapters.settings import read_settings
from clickmask_adapters.tools._json import Json
from clickmask_adapters.tools.label_studio import TOOL, LabelStudioSettings
from clickmask_adapters.tools.label_studio.client import client_of
from clickmask_adapters.tools.label_studio.routes import Backend, images_of

_opening = threading.Lock()


@functools.cache
def _open() -> Backend:
    home = Home(read_settings())
    home.workbench.read_events(home.ingester, home.label_sources)
    atexit.register(home.close)
    client = client_of(home.settings.of(LabelStudioSettings))
    return Backend(home.workbench, client, home.settings.min_iou)


def opened() -> Backend:
    """The one backend of the process: label-studio-ml makes a model per request, from several threads."""
    with _opening:
        return _open()


class ClickmaskModel(LabelStudioMLBase):
    """A model that answers clicks and boxes, configured by CLICKMASK_* and LABEL_STUDIO_* variables."""

    def setup(self) -> None:
        """Set version 2's model version at each request. 1.0.9 names its versions itself."""
        version = opened().model_version({"project": self.project_id})
        if str(self.model_version) != version:
            self.set("model_version", version)

    def predict(
        self, tasks: list[dict[str, Any]], context: Json | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Answer a click; without a context, prepare the images, and prelabel if the project has a model."""
        asked = {"tasks": tasks, **self._project()}
        backend = opened()
        try:
            if not context:
                backend.prepare(images_of(asked), backend.segmenter(asked))
                answers = backend.prelabel(asked)
            else:
                answers = [backend.answer(asked, context)]
        except ClickmaskError as error:
            # Otherwise both versions would answer with a traceback.
            raise AnswerException(failures.status_of(error), str(error), {"traceback": None}) from error
        return orjson.loads(orjson.dumps(answers, option=orjson.OPT_SERIALIZE_NUMPY))

    def fit(self, event: str, data: Json, **kwargs: Any) -> None:
        """Keep the event. Version 2 calls this inside the annotator's request."""
        opened().workbench.keep_event(TOOL, orjson.dumps({"action": event, **data})).result()

    def process_event(self, event: str, data: Json, job_id: str, additional_params: Json) -> dict[str, Any]:
        """Drop the event: 1.0.9 calls this in a forked process, which must not use its parent's databases.

        Without a result, 1.0.9 would log a traceback for each earlier event at every setup.
        """
        return {}

    def _project(self) -> dict[str, Any]:
        if hasattr(self, "project_id"):
            return {"project": self.project_id, "label_config": self.label_config}
        # 1.0.9 has one model for all projects, with the label config of the last one set up.
        body = flask.request.get_json()
        return {"project": body.get("project"), "label_config": body.get("label_config")}
