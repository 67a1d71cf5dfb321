"""A project's label config (XML): its images, and the controls that prompt and answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from xml.etree import ElementTree

from clickmask.errors import InvalidRequest

ANSWER_KINDS = ("brush", "bitmask", "polygon")
LABELS = "labels"
UNNAMED_FIELD = "$undefined$"  # the field of tasks imported as bare addresses
VARIABLE = re.compile(r"\$([A-Za-z_][\w.\-]*)")


@dataclass(frozen=True)
class Label:
    value: str
    alias: str | None = None

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
    """A control to draw an answer with, and its labels; `labels_control` labels what a bare tag draws."""

    control: Control
    labels: tuple[str, ...]
    labels_control: Control | None = None


@dataclass(frozen=True)
class LabelConfig:
    controls: tuple[Control, ...]
    images: Mapping[str, str]  # name of the <Image>: its value or valueList, "$image" for instance

    def control(self, name: str) -> Control | None:
        return next((control for control in self.controls if control.name == name), None)

    def image_uris(self, to_name: str, data: Mapping[str, Any]) -> list[str]:
        """Addresses in `data` of the images that `to_name` shows, in order. Raises InvalidRequest."""
        template = self.images.get(to_name)
        if template is None:
            raise InvalidRequest(f"the label config has no <Image> named {to_name[:80]!r}")
        found: object = _resolve(template, data)
        uris = cast("list[object]", found) if isinstance(found, list) else [found]
        chosen = [uri for uri in uris if isinstance(uri, str) and uri]
        if not chosen or len(chosen) < len(uris):
            raise InvalidRequest(f"the task has no image at {template[:80]!r}")
        return chosen

    def answers(self, to_name: str, prompted_with: str, labels: Sequence[str]) -> list[Answer]:
        """The controls with which to answer a prompt with `labels` on `to_name`.

        These are all brushes, bit masks and polygons that carry one of the labels. A config without them
        labels with boxes and gets its plain rectangles. Controls that ask never answer: the one that was
        prompted with, and smart rectangles. Raises InvalidRequest if no control is left.
        """
        here = [control for control in self.controls if to_name in control.to_names]
        source = self.control(prompted_with)
        drawing = [c for c in here if c.kind in ANSWER_KINDS and c.name != prompted_with]
        if not drawing:
            drawing = [c for c in here if c.kind == "rectangle" and not c.smart and c.name != prompted_with]
        if not drawing:
            raise InvalidRequest(
                "the label config has no control to answer with: add <BrushLabels> or <PolygonLabels> "
                f"with toName={to_name[:80]!r}"
            )
        labelling = [control for control in here if control.type == LABELS]
        answers = [_answer(control, labelling, source, labels) for control in drawing]
        found = [answer for answer in answers if answer]
        if not found:
            raise InvalidRequest(
                f"no brush or polygon of the label config has the label {', '.join(labels)[:80]!r}"
            )
        return found


def parse(xml: str) -> LabelConfig:
    """Read a label config; tags and attributes may have any case. Raises InvalidRequest if it is not XML."""
    if "<!" in re.sub(r"<!--.*?-->", "", xml, flags=re.DOTALL):
        raise InvalidRequest("a label config has no document type and no entities")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 -- no entities: see above
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidRequest("the label config is not well-formed XML") from error
    controls: list[Control] = []
    images: dict[str, str] = {}
    for element in root.iter():
        tag, attributes = element.tag.lower(), _attributes(element)
        name, to_name = attributes.get("name", ""), attributes.get("toname", "")
        if tag == "image" and name:
            images[name] = attributes.get("valuelist") or attributes.get("value", "")
        elif name and to_name:
            inner = [_attributes(child) for child in element.iter() if child.tag.lower() == "label"]
            labels = (Label(label["value"], label.get("alias")) for label in inner if label.get("value"))
            smart = (attributes.get("smart", "").lower(), attributes.get("smartonly", "").lower())
            any_label = tag.endswith(LABELS) and attributes.get("value", "").startswith("$")
            to_names = tuple(part.strip() for part in to_name.split(","))
            controls.append(Control(name, tag, to_names, tuple(labels), "true" in smart, any_label))
    return LabelConfig(tuple(controls), images)


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    return {name.lower(): value for name, value in element.attrib.items()}


def _answer(
    control: Control, labelling: Sequence[Control], source: Control | None, labels: Sequence[str]
) -> Answer | None:
    """An answer with `control`; None if labels were asked for and it carries none of them."""
    if control.labels_itself:
        written = _written(control, source, labels)
        return Answer(control, written) if written or not labels else None
    for labels_control in labelling:
        written = _written(labels_control, source, labels)
        if written:
            return Answer(control, written, labels_control)
    return Answer(control, ()) if not labels or not labelling else None


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


def _resolve(template: str, data: Mapping[str, Any]) -> object:
    """A template's value in a task; templates are "$image", "$page.scan" or "https://host/$name"."""
    if whole := VARIABLE.fullmatch(template):
        found = _look_up(whole[1], data)
        return data.get(UNNAMED_FIELD) if found is None else found
    missing = [name for name in VARIABLE.findall(template) if not isinstance(_look_up(name, data), str)]
    if missing:
        return None
    return VARIABLE.sub(lambda match: str(_look_up(match[1], data)), template)


def _look_up(path: str, data: Mapping[str, Any]) -> object:
    if path in data:
        return data[path]
    found: Any = data
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, Any]", found).get(part)
    return found
