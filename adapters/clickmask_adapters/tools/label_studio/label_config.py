"""A project's label config (XML): its images, and the controls that prompt and answer. Pure."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast
from xml.parsers import expat

from clickmask.errors import InvalidRequest
from clickmask_adapters.tools._json import Json, as_text
from clickmask_adapters.tools.label_studio import TOOL

log = logging.getLogger(__name__)
LABELS = "labels"
UNNAMED_FIELD = "$undefined$"  # the field of tasks imported as bare addresses
VARIABLE = re.compile(r"\$([\w[\].{}]+)", re.ASCII)  # as in Label Studio 1.23.2
INDEX = re.compile(r"[0-9]{1,9}")
# These limit a config as it comes, and again what its <Repeater> tags make of it for a task. A thousand
# labels take a twentieth of them.
MAX_CHARS = 2**21
MAX_TAGS = 20_000
MAX_DEPTH = 100  # of tags in tags
MAX_IMAGES = 1000
MAX_ADDRESS_CHARS = 2**14  # of an image, but for data: addresses; presigned ones have about 2,000
MAX_ANSWERS = 10  # controls that draw one answer: each draws all of it, and a ragged brush has 20 MB


@dataclass(frozen=True)
class Label:
    value: str
    alias: str | None = None
    category: int | None = None  # its place among the classes of an export, if the config says one

    @property
    def written(self) -> str:
        """The text that stands for this label in Label Studio's results."""
        return self.alias or self.value


@dataclass(frozen=True)
class Control:
    """A tag that makes regions (`BrushLabels`, `Brush`) or labels them (`Labels`)."""

    name: str
    type: str  # the tag in lower case, which is also the type of its results
    to_names: tuple[str, ...]
    labels: tuple[Label, ...]
    smart: bool
    takes_any_label: bool  # its labels come from the task

    @property
    def kind(self) -> str:
        """The shape that it makes: `brush` for `BrushLabels` and `Brush`."""
        return LABELS if self.type == LABELS else self.type.removesuffix(LABELS)

    @property
    def labels_itself(self) -> bool:
        return self.type.endswith(LABELS)

    def find(self, written: str) -> Label | None:
        """The label that results write as `written`; an alias wins over a value."""
        return self._by_text.get(written) or (Label(written) if self.takes_any_label else None)

    @cached_property
    def _by_text(self) -> Mapping[str, Label]:
        found: dict[str, Label] = {}
        for spelling in ("written", "value"):
            for label in self.labels:
                found.setdefault(getattr(label, spelling), label)
        return found


@dataclass(frozen=True)
class Answer:
    """The control that draws an answer, followed by the one that labels it if a bare tag draws."""

    controls: tuple[Control, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Tag:
    """A tag with the tags inside; names of tags and attributes are in lower case. Text is left out."""

    name: str
    attributes: Mapping[str, str]
    inside: list["Tag"] = field(default_factory=list["Tag"])


@dataclass(frozen=True)
class LabelConfig:
    controls: tuple[Control, ...]
    images: Mapping[str, str]  # name of the <Image>: its value or valueList, "$image" for instance
    repeated: Tag | None = None  # the whole config, if tags of it are repeated for a task

    def of_task(self, data: Mapping[str, Any]) -> "LabelConfig":
        """The config with its <Repeater> tags repeated as the task's `data` say. Raises InvalidRequest."""
        if self.repeated is None:
            return self
        return replace(_read(_Repeating(data).repeat(self.repeated)), repeated=None)

    def image_uris(self, to_name: str, data: Mapping[str, Any]) -> list[str]:
        """Addresses in `data` of the images that `to_name` shows, in order. Raises InvalidRequest."""
        template = self.images.get(to_name)
        if template is None:
            raise InvalidRequest(f"the label config has no <Image> named {to_name[:80]!r}")
        if whole := VARIABLE.fullmatch(template):  # "$image" or "$pages[0].scan"
            found = _look_up(whole[1], data)
            found = data.get(UNNAMED_FIELD) if found is None else found
        else:  # "https://host/$id-x.png"
            found = _filled(template, data)
        uris = cast("list[object]", found) if isinstance(found, list) else [found]
        chosen = [uri.strip() for uri in uris if isinstance(uri, str) and uri.strip()]  # as browsers do
        if not chosen or len(chosen) < len(uris):
            raise InvalidRequest(f"the task has no image at {template[:80]!r}")
        if any(len(uri) > MAX_ADDRESS_CHARS and uri[:5].lower() != "data:" for uri in chosen):
            raise InvalidRequest(f"the address of the task's image at {template[:80]!r} is too long")
        return chosen

    def shown(self, task: object, data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
        """The name and the `image_uris` of each <Image>; one line of log if some show none to this `task`."""
        try:
            config = self.of_task(data)
        except InvalidRequest as error:
            log.info("%s: task %s: %s", TOOL, task, error)
            return
        reasons: list[InvalidRequest] = []
        for name in config.images:
            try:
                yield name, config.image_uris(name, data)
            except InvalidRequest as error:
                reasons.append(error)
        if reasons:
            log.info(
                "%s: task %s, %d images of which are not shown: %s", TOOL, task, len(reasons), reasons[0]
            )

    def answers(self, to_name: str, prompted_with: str, labels: Sequence[str]) -> list[Answer]:
        """The controls with which to answer a prompt with `labels` on `to_name`.

        These are all brushes, bit masks and polygons that carry one of the labels. A config without them
        labels with boxes and gets its plain rectangles. Controls that ask never answer: the one that was
        prompted with, smart rectangles, and smart brushes and polygons beside plain ones. Raises
        InvalidRequest if no control is left.
        """
        here = [control for control in self.controls if to_name in control.to_names]
        others = [control for control in here if control.name != prompted_with]
        shapes = [each for each in others if each.kind in ("brush", "bitmask", "polygon")]
        shapes = [each for each in shapes if not each.smart] or shapes
        drawing = shapes or [each for each in others if each.kind == "rectangle" and not each.smart]
        if not drawing:
            raise InvalidRequest(
                "the label config has no control to answer with: add <BrushLabels> or <PolygonLabels> "
                f"with toName={to_name[:80]!r}"
            )
        if len(drawing) > MAX_ANSWERS:
            raise InvalidRequest(
                f"the label config has {len(drawing)} controls to answer with, more than {MAX_ANSWERS}"
            )
        source = next((control for control in self.controls if control.name == prompted_with), None)
        tags = [each for each in here if each.type == LABELS]
        written = ((each, _written(each, source, labels)) for each in tags)
        of_tags = next((each for each in written if each[1]), None)
        found: list[Answer] = []
        for control in drawing:
            if control.labels_itself:
                labelled_by, names = control, _written(control, source, labels)
            else:
                labelled_by, names = of_tags or (control, ())
            if names or not labels or not (control.labels_itself or tags):
                controls = (control,) if labelled_by is control else (control, labelled_by)
                found.append(Answer(controls, names))
        if not found:
            raise InvalidRequest(
                f"no brush or polygon of the label config has the label {', '.join(labels)[:80]!r}"
            )
        return found


def config_of(project: Json) -> LabelConfig:
    """The project's label config; an empty one if it has none yet. Raises InvalidRequest as `parse`."""
    return parse(project.get("label_config") or "<View/>")


def parse(text: object) -> LabelConfig:
    """Read a label config; tags and attributes may have any case. Raises InvalidRequest if it is not XML, or
    too large."""
    xml = as_text(text, "the label_config of the request")
    if len(xml) > MAX_CHARS:
        raise InvalidRequest(f"a label config has at most {MAX_CHARS} characters, not {len(xml)}")
    top, tags = Tag("", {}), 0
    around = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal tags
        tags += 1
        if tags > MAX_TAGS or len(around) > MAX_DEPTH:
            raise InvalidRequest(
                f"a label config has at most {MAX_TAGS} tags, and at most {MAX_DEPTH} in one another"
            )
        tag = Tag(name.lower(), {key.lower(): value for key, value in attributes.items()})
        around[-1].inside.append(tag)
        around.append(tag)

    def end(_: str) -> None:
        around.pop()

    def refuse(*_: object) -> None:  # before entities of it can grow
        raise InvalidRequest("a label config has no document type and no entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError) as error:
        raise InvalidRequest("the label config is not well-formed XML") from error
    return _read(top.inside[0])


class _Repeating:
    """The tags of a config for a task with `data`: each <Repeater> becomes as many views as its list has
    entries. Raises InvalidRequest for more of them than any task needs."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._tags, self._chars = 0, 0

    def repeat(self, root: Tag) -> Tag:
        return self._copy(root, root.attributes, ())

    def _copy(self, tag: Tag, attributes: Mapping[str, str], indices: Sequence[tuple[str, str]]) -> Tag:
        """`tag` with these attributes, and inside it each flag of `indices` replaced by its index."""
        self._tags += 1
        self._chars += sum(len(name) + len(value) for name, value in attributes.items())
        if self._tags > MAX_TAGS or self._chars > MAX_CHARS:
            raise InvalidRequest(
                f"the label config repeats more than {MAX_TAGS} tags or {MAX_CHARS} characters for a task"
            )
        return Tag(
            tag.name, attributes, [each for child in tag.inside for each in self._copies(child, indices)]
        )

    def _copies(self, tag: Tag, indices: Sequence[tuple[str, str]]) -> Iterator[Tag]:
        attributes = {name: self._indexed(value, indices) for name, value in tag.attributes.items()}
        if tag.name != "repeater":
            yield self._copy(tag, attributes, indices)
            return
        entries = _look_up(attributes.get("on", "").removeprefix("$"), self._data)
        flag = attributes.get("indexflag") or "{{idx}}"
        view = replace(tag, name="view")
        for index in range(len(cast("list[object]", entries)) if isinstance(entries, list) else 0):
            yield self._copy(view, {}, (*indices, (flag, str(index))))

    def _indexed(self, value: str, indices: Iterable[tuple[str, str]]) -> str:
        for flag, index in indices:
            value = value.replace(flag, index)
            if len(value) > MAX_CHARS:  # each replacement may make it longer
                raise InvalidRequest(f"the label config repeats more than {MAX_CHARS} characters for a task")
        return value


def _read(root: Tag) -> LabelConfig:
    controls: list[tuple[Tag, list[Label]]] = []
    images: dict[str, str] = {}
    repeats = False
    left = [(root, list[Label]())]  # tags, and the labels of the control around each
    while left:
        tag, labels = left.pop()
        name, to_name = tag.attributes.get("name"), tag.attributes.get("toname")
        repeats |= tag.name == "repeater"
        if tag.name == "image" and name:
            images[name] = tag.attributes.get("valuelist") or tag.attributes.get("value", "")
        elif tag.name == "label" and (value := tag.attributes.get("value")):
            category = _number(tag.attributes.get("category", ""))
            labels.append(Label(value, tag.attributes.get("alias"), category))
        elif name and to_name:
            labels = list[Label]()
            controls.append((tag, labels))
        left += ((each, labels) for each in reversed(tag.inside))
    if len(images) > MAX_IMAGES:
        raise InvalidRequest(f"the label config has {len(images)} images, more than {MAX_IMAGES}")
    return LabelConfig(
        tuple(_control(tag, labels) for tag, labels in controls), images, root if repeats else None
    )


def _control(tag: Tag, labels: Iterable[Label]) -> Control:
    of = tag.attributes
    to_names = tuple(part.strip() for part in of["toname"].split(","))
    smart = "true" in (of.get("smart", "").lower(), of.get("smartonly", "").lower())
    any_label = tag.name.endswith(LABELS) and of.get("value", "").startswith("$")
    return Control(of["name"], tag.name, to_names, tuple(labels), smart, any_label)


def _number(text: str) -> int | None:
    """The whole number that `text` is; None if it is none."""
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text) else None


def _written(control: Control, source: Control | None, labels: Sequence[str]) -> tuple[str, ...]:
    """`labels`, as results of `source` write them, in the spelling of results of `control`."""
    found: dict[str, None] = {}
    for label in labels:
        asked = source.find(label) if source else None
        if here := (control.find(asked.value) if asked else None) or control.find(label):
            found[here.written] = None
    if not labels and len(control.labels) == 1:
        return (control.labels[0].written,)
    return tuple(found)


def _filled(template: str, data: Mapping[str, Any]) -> str | None:
    """`template` with values of the task for its variables; None if it lacks one. Raises InvalidRequest."""
    names = VARIABLE.findall(template)
    values = {name: _look_up(name, data) for name in names}
    if not all(isinstance(value, str | int | float) for value in values.values()):
        return None
    texts = {name: str(value) for name, value in values.items()}
    if len(names) > len(texts) and sum(len(texts[name]) for name in names) > MAX_ADDRESS_CHARS:
        raise InvalidRequest(f"the address of the task's image at {template[:80]!r} is too long")
    return VARIABLE.sub(lambda match: texts[match[1]], template)


def _look_up(path: str, data: Mapping[str, Any]) -> Any:
    """The value at `path`, such as "pages[0].scan"; None if there is none."""
    if path in data:
        return data[path]
    found: Any = data
    for part in re.findall(r"[^.[\]]+", path):
        if isinstance(found, Mapping):
            found = cast("Mapping[str, Any]", found).get(part)
        elif isinstance(found, list) and INDEX.fullmatch(part) and int(part) < len(cast("list[Any]", found)):
            found = cast("list[Any]", found)[int(part)]
        else:
            return None
    return found
