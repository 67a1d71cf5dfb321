"""What can go wrong, in the caller's words. Messages are shown to annotators: no paths, no tokens."""

from __future__ import annotations


class ClickmaskError(Exception):
    """Base of every error that clickmask raises on purpose."""


class InvalidRequest(ClickmaskError):
    """The request is not what its endpoint expects: broken JSON, a wrong type, a missing part."""


class InvalidPrompt(ClickmaskError):
    """The prompt cannot be: no positive part, not finite, or outside of the image."""


class InvalidImage(ClickmaskError):
    """The bytes are not an image that clickmask reads."""


class ImageTooLarge(InvalidImage):
    """The image has more bytes or pixels than the configured cap."""


class ImageRefused(ClickmaskError):
    """The address of the image is one that clickmask must not read from."""


class ImageUnknown(ClickmaskError):
    """The image was named by its digest alone, and is not in memory (any more): send it again."""


class ImageUnavailable(ClickmaskError):
    """The image could not be fetched: unreachable, timed out, refused by its server, or gone."""


class ToolUnavailable(ClickmaskError):
    """A labeling tool cannot be reached, or refuses what clickmask asks of it."""


class UnknownSegmenter(ClickmaskError):
    """No segmenter of this name is installed."""


class SegmenterNotReady(ClickmaskError):
    """The segmenter is known but cannot run, for want of weights or of a package."""


class UnknownAnnotator(ClickmaskError):
    """No annotator of this name is installed."""


class AnnotatorNotReady(ClickmaskError):
    """The annotator is known but cannot run, for want of a segmenter, of a model or of a package."""


class PluginFailed(ClickmaskError):
    """A plugin failed, or gave something else than its contract says."""


class UnknownModel(ClickmaskError):
    """The project has no trained model of this name, or none to go back to."""


class ModelDamaged(ClickmaskError):
    """A trained model's files are not what was saved, or its network does not answer as it did."""


class TrainingNotReady(ClickmaskError):
    """Nothing can be trained here, for want of packages."""


class UnknownJob(ClickmaskError):
    """There is no training of this id."""


class WeightsUnavailable(SegmenterNotReady):
    """Weights could not be fetched, or are not the official file."""


class NotStored(ClickmaskError):
    """What was to be kept for later could not be written."""


class Busy(ClickmaskError):
    """A bounded queue is full; the same request may succeed later."""

    def __init__(self, message: str, retry_after: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class StoreUnavailable(ClickmaskError):
    """The database cannot be opened, or is none that clickmask can use."""


class OriginRefused(ClickmaskError):
    """This home holds the labels of another Label Studio or CVAT than the one that is configured."""


class ExportFailed(ClickmaskError):
    """An export could not be written, or does not read back as what was meant."""


class ExportTooLarge(ClickmaskError):
    """The export has more bytes than the configured cap."""


class UnknownProject(ClickmaskError):
    """Nothing is kept here of a project of this name."""
