"""A project's label config (XML): its images, and the controls that prompt and answer. Pure."""

import copy
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from xml.etree import ElementTree

from clickmask.errors import InvalidRequest
from clickmask_adapters.tools._json import Json, as_text
from clickmask_adapters.tools.label_studio import TOOL

log = logging.getLogger(__name__)
LABELS = "labels"
UNNAMED_FIELD = "$undefined$"  # the field of tasks imported as bare addresses
VARIABLE = re.compile(r"\$([\w[\].{}]+)", re.ASCII)  # as in Label Studio 1.23.2
MAX_REPEATED = 20_000  # tags of a task after its <Repeater> tags are repeated


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
        found = [label for label in self.labels if written in (label.alias, label.value)]
        if not found and self.takes_any_label:
            return Label(written)
        return min(found, key=lambda label: label.written != written, default=None)


@dataclass(frozen=True)
class Answer:
    """The control that draws an answer, followed by the one that labels it if a bare tag draws."""

    controls: tuple[Control, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelConfig:
    controls: tuple[Control, ...]
    images: Mapping[str, str]  # name of the <Image>: its value or valueList, "$image" for instance
    repeated: ElementTree.Element | None = None  # the whole config, if tags of it are repeated for a task

    def of_task(self, data: Mapping[str, Any]) -> "LabelConfig":
        """The config with its <Repeater> tags repeated as the task's `data` say. Raises InvalidRequest."""
        if self.repeated is None:
            return self
        root = copy.deepcopy(self.repeated)
        _repeat(root, data, itertools.count())
        return replace(_read(root), repeated=None)

    def image_uris(self, to_name: str, data: Mapping[str, Any]) -> list[str]:
        """Addresses in `data` of the images that `to_name` shows, in order. Raises InvalidRequest."""
        template = self.images.get(to_name)
        if template is None:
            raise InvalidRequest(f"the label config has no <Image> named {to_name[:80]!r}")
        if whole := VARIABLE.fullmatch(
            template
        ):  # "$image" or "$pages[0].scan", else "https://host/$id-x.png"
            found = _look_up(whole[1], data)
            found = data.get(UNNAMED_FIELD) if found is None else found
        else:
            values = {name: _look_up(name, data) for name in VARIABLE.findall(template)}
            complete = all(isinstance(value, str | int | float) for value in values.values())
            found = VARIABLE.sub(lambda match: str(values[match[1]]), template) if complete else None
        uris = cast("list[object]", found) if isinstance(found, list) else [found]
        chosen = [uri for uri in uris if isinstance(uri, str) and uri]
        if not chosen or len(chosen) < len(uris):
            raise InvalidRequest(f"the task has no image at {template[:80]!r}")
        return chosen

    def shown(self, task: object, data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
        """The name and the `image_uris` of each <Image>; one that shows none to this `task` is logged."""
        try:
            config = self.of_task(data)
        except InvalidRequest as error:
            log.info("%s: task %s: %s", TOOL, task, error)
            return
        for name in config.images:
            try:
                yield name, config.image_uris(name, data)
            except InvalidRequest as error:
                log.info("%s: task %s: %s", TOOL, task, error)

    def answers(self, to_name: str, prompted_with: str, labels: Sequence[str]) -> list[Answer]:
        """The controls with which to answer a prompt with `labels` on `to_name`.

        These are all brushes, bit masks and polygons that carry one of the labels. A config without them
        labels with boxes and gets its plain rectangles. Controls that ask never answer: the one that was
        prompted with, and smart rectangles. Raises InvalidRequest if no control is left.
        """
        here = [control for control in self.controls if to_name in control.to_names]
        others = [control for control in here if control.name != prompted_with]
        shapes = [each for each in others if each.kind in ("brush", "bitmask", "polygon")]
        drawing = shapes or [each for each in others if each.kind == "rectangle" and not each.smart]
        if not drawing:
            raise InvalidRequest(
                "the label config has no control to answer with: add <BrushLabels> or <PolygonLabels> "
                f"with toName={to_name[:80]!r}"
            )
        source = next((control for control in self.controls if control.name == prompted_with), None)
        found: list[Answer] = []
        for control in drawing:
            labelling = [control] if control.labels_itself else [each for each in here if each.type == LABELS]
            written = ((each, _written(each, source, labels)) for each in labelling)
            labelled_by, names = next((each for each in written if each[1]), (control, ()))
            if names or not labels or not labelling:
                controls = (control,) if labelled_by is control else (control, labelled_by)
                found.append(Answer(controls, names))
        if not found:
            raise InvalidRequest(
                f"no brush or polygon of the label config has the label {', '.join(labels)[:80]!r}"
            )
        return found


def config_of(project: Json) -> LabelConfig:
    """The project's label config; an empty one if it has none yet. Raises InvalidRequest as `parse`."""
    return parse(str(project.get("label_config") or "<View/>"))


def parse(text: object) -> LabelConfig:
    """Read a label config; tags and attributes may have any case. Raises InvalidRequest if it is not XML."""
    xml = as_text(text, "the label_config of the request")
    if "<!" in re.sub(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>", "", xml, flags=re.DOTALL):
        raise InvalidRequest("a label config has no document type and no entities")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 -- no entities: see above
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidRequest("the label config is not well-formed XML") from error
    return _read(root)


def _repeat(element: ElementTree.Element, data: Mapping[str, Any], tags: Iterator[int]) -> None:
    """Replace each <Repeater> below `element` by as many copies of its content as its list has entries."""
    children: list[ElementTree.Element] = []
    for child in element:
        if child.tag.lower() != "repeater":
            _repeat(child, data, tags)
            children.append(child)
            continue
        attributes = _attributes(child)
        entries = _look_up(attributes.get("on", "").removeprefix("$"), data)
        for index in range(len(cast("list[object]", entries)) if isinstance(entries, list) else 0):
            view = copy.deepcopy(child)
            view.tag = "View"
            for tag in view.iter():
                if next(tags) >= MAX_REPEATED:
                    raise InvalidRequest(f"the label config repeats more than {MAX_REPEATED} tags for a task")
                flag = attributes.get("indexflag", "{{idx}}")
                tag.attrib = {name: value.replace(flag, str(index)) for name, value in tag.attrib.items()}
            _repeat(view, data, tags)
            children.append(view)
    element[:] = children


def _read(root: ElementTree.Element) -> LabelConfig:
    controls: list[Control] = []
    images: dict[str, str] = {}
    for element in root.iter():
        tag, attributes = element.tag.lower(), _attributes(element)
        name, to_name = attributes.get("name", ""), attributes.get("toname", "")
        if tag == "image" and name:
            images[name] = attributes.get("valuelist") or attributes.get("value", "")
        elif name and to_name:
            inner = [_attributes(child) for child in element.iter() if child.tag.lower() == "label"]
            labels = (
                Label(label["value"], label.get("alias"), _number(label.get("category", "")))
                for label in inner
                if label.get("value")
            )
            smart = (attributes.get("smart", "").lower(), attributes.get("smartonly", "").lower())
            any_label = tag.endswith(LABELS) and attributes.get("value", "").startswith("$")
            to_names = tuple(part.strip() for part in to_name.split(","))
            controls.append(Control(name, tag, to_names, tuple(labels), "true" in smart, any_label))
    repeats = any(element.tag.lower() == "repeater" for element in root.iter())
    return LabelConfig(tuple(controls), images, root if repeats else None)


def _number(text: str) -> int | None:
    """The whole number that `text` is; None if it is none."""
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text) else None


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    return {name.lower(): value for name, value in element.attrib.items()}


def _written(control: Control, source: Control | None, labels: Sequence[str]) -> tuple[str, ...]:
    """`labels`, as results of `source` write them, in the spelling of results of `control`."""
    found: list[str] = []
    for label in labels:
        asked = source.find(label) if source else None
        here = (control.find(asked.value) if asked else None) or control.find(label)
        if here and here.written not in found:
            found.append(here.written)
    if not labels and len(control.labels) == 1:
        found.append(control.labels[0].written)
    return tuple(found)


def _look_up(path: str, data: Mapping[str, Any]) -> Any:
    """The value at `path`, such as "pages[0].scan"; None if there is none."""
    if path in data:
        return data[path]
    found: Any = data
    for part in re.findall(r"[^.[\]]+", path):
        if isinstance(found, Mapping):
            found = cast("Mapping[str, Any]", found).get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(cast("list[Any]", found)):
            found = cast("list[Any]", found)[int(part)]
        else:
            return None
    return found
