"""Labels and images from Label Studio: the changes in an event, and everything in a project."""

from collections.abc import Iterator, Sequence
from functools import partial

from clickmask.errors import NotFound
from clickmask.ingest.apply import Page
from clickmask.labels.submissions import AnnotationDeleted, Change, ProjectDescribed, Submission, TaskDeleted
from clickmask.types import ImageRef
from clickmask_adapters.tools import NamedImage
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import parse_object, project_number
from clickmask_adapters.tools.label_studio import TOOL, labels
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import config_of

PAGE = 50  # tasks: with 20 annotations of 100 kB each a page is 100 MB already


class LabelStudioLabels:
    """A `clickmask.ingest.apply.LabelSource`: the labels of one Label Studio."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client

    @property
    def origin(self) -> str | None:
        return self._client.url

    def changes(self, event: bytes, retry: bool = False) -> Iterator[Change]:
        """The changes that the event reports. Raises InvalidRequest if it cannot be read.

        `retry` leaves out the project's description, which was ingested before and may be old by now.
        """
        found = labels.changes(parse_object(event, "the event"))
        return (each for each in found if not (retry and isinstance(each, ProjectDescribed)))

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(int(submission.task), submission.address)

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """The project's annotations, one page per task, starting after the task `position`.

        Tasks come by number, so those that come and go meanwhile neither shift nor hide others. Raises
        InvalidRequest if `project` is not a number, NotFound if Label Studio does not have it, and ToolError.
        """
        number = project_number(project, "Label Studio")
        try:
            found = self._client.project(number)
        except ToolError as error:
            if error.status == 404:
                raise NotFound(f"Label Studio has no project {number}") from error
            raise
        config = config_of(found)
        read: list[Change] = [labels.described(found)]
        last = int(position) if position else 0
        while True:
            tasks, total = self._client.annotated_tasks(number, after=last, page_size=PAGE)
            for place, task in enumerate(tasks):
                last = task["id"]
                for annotation in task.get("annotations", []):
                    read += labels.readable(annotation, {**task, "project": number}, config)
                yield Page(read, str(last), remaining=total - place - 1)
                read = []
            if len(tasks) < PAGE:
                return

    def gone(self, annotations: Sequence[tuple[str, str]], project: str) -> Iterator[Change]:
        """Deletions of those `annotations`, (task, annotation), that Label Studio no longer has."""
        for task in dict.fromkeys(task for task, _ in annotations):
            if not self._client.has(f"/api/tasks/{task}/"):
                yield TaskDeleted(TOOL, task)
                continue
            for annotation in (name for of, name in annotations if of == task):
                if not self._client.has(f"/api/annotations/{annotation}/"):
                    yield AnnotationDeleted(TOOL, annotation)


def project_images(client: LabelStudioClient, project: str) -> Iterator[NamedImage]:
    """Images of all tasks that have any, in Label Studio's order. Raises InvalidRequest and ToolError."""
    number = project_number(project, "Label Studio")
    config = config_of(client.project(number))
    for task in client.all_tasks(number):
        for _, uris in config.shown(task["id"], task["data"]):
            for place, uri in enumerate(uris, 1):
                name = f"task {task['id']}" + (f", image {place}" if len(uris) > 1 else "")
                # Located when its turn comes: an access token of now would have expired by then.
                yield NamedImage(name, partial(client.image_ref, task["id"], uri))
