"""Errors, about one per status. People read the messages: no paths, no tokens."""

import errno

# In the texts of Python, OpenCV, ONNX Runtime 1.32, OpenVINO 2026.4, torch 2.13, C++ and the dynamic linker,
# which raise classes of their own.
_OUT_OF_MEMORY = (
    *("allocate memory", "failed to allocate", "could not allocate", "unable to allocate", "bad_alloc"),
    *("bad allocation", "not enough memory", "insufficient memory", "out of memory", "cannot enlarge memory"),
    *("can't alloc", "start new thread", "failed to map segment", "resource temporarily unavailable"),
)
NEEDS_MEMORY = "needs more memory than this process may have: raise the limit of its service or container"


class ClickmaskError(Exception):
    """Base of every error that clickmask raises on purpose."""


class InvalidRequest(ClickmaskError):
    """The request is not what its endpoint expects: broken JSON, a wrong type, a missing part."""


class Refused(ClickmaskError):
    """The address of an image is one that clickmask must not read from."""


class NotFound(ClickmaskError):
    """Nothing has this name: no segmenter, annotator, project, model or job."""


class Conflict(ClickmaskError):
    """The home holds labels that forbid it: those of another Label Studio or CVAT than the configured one,
    newer ones, or ones that were deleted."""


class Gone(ClickmaskError):
    """An image that was named only by its digest is no longer kept: send it again."""


class TooLarge(ClickmaskError):
    """An image or an export has more bytes or pixels than the configured cap."""


class InvalidInput(ClickmaskError):
    """A prompt or an image cannot be used: nothing positive, not finite, outside the image, not decodable."""


class Failed(ClickmaskError):
    """Something broke: a trained model is damaged, a plugin fails, an export does not read back as meant."""


class ImageUnavailable(ClickmaskError):
    """The image could not be fetched: unreachable, timed out, refused by its server, or gone."""


class ToolUnavailable(ClickmaskError):
    """A labeling tool cannot be reached, or refuses what clickmask asks of it."""


class NotReady(ClickmaskError):
    """Something known cannot run: weights, a package, a model or another part is missing."""


class Busy(ClickmaskError):
    """A bounded queue is full; the same request may succeed later."""

    def __init__(self, message: str, retry_after: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class HostBusy(Busy):
    """Too many requests wait for one image host, or for all of them."""


class OutOfMemory(ClickmaskError):
    """This process gets no more memory, or no more threads, from the system."""


class StoreUnavailable(ClickmaskError):
    """The database cannot be opened, or clickmask cannot use it."""


class NotStored(ClickmaskError):
    """Something meant for later could not be written."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a foreign error, or one that led to it, says that memory or threads have run out."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, MemoryError | OutOfMemory) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(words in text for words in _OUT_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
