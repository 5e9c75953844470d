"""The exceptions that callers may catch. All are `ValueError`s; the message says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class TimmSkError(ValueError):
    """Base class of the project's exceptions.

    Args:
        message: What is wrong, and what to do.
        in_python: What else callers of a function can do; the command line, which cannot, leaves it out.
    """

    def __init__(self, message: str = '', *, in_python: str = '') -> None:
        super().__init__(f'{message} {in_python}'.rstrip())
        self.message = message


class UnknownModelError(TimmSkError):
    """Raised if a name is neither an architecture nor one of its checkpoints; suggests the nearest names."""


class NoWeightsError(TimmSkError):
    """Raised if pretrained weights are requested of an architecture or a tag that has none."""


class CorruptCheckpointError(TimmSkError):
    """Raised before loading if a checkpoint's file is missing, or is not the one that was published."""


class MismatchedCheckpointError(TimmSkError):
    """Raised before loading if a checkpoint's keys or shapes are not the model's; names them."""


class UnloadableModelError(TimmSkError):
    """Raised if a model's folder, repository or file cannot be read, or has invalid content."""


class UnpublishableError(TimmSkError):
    """Raised before anything is sent if a checkpoint may not, or cannot, be published."""


class ReleaseError(TimmSkError):
    """Raised if the Hub fails during a release, or returns other files than were sent."""


class UnreadableImageError(TimmSkError):
    """Raised if a file is not an image that can be decoded in full; names the file."""


class UnreadableCheckpointError(TimmSkError):
    """Raised if a checkpoint's file is damaged, hostile or of an unsupported format; names the file."""


class DownloadError(TimmSkError):
    """Raised if a file cannot be downloaded in full; names the address."""


class UnwritableStoreError(TimmSkError):
    """Raised if the local store of checkpoints cannot be written; names its folder."""


class UnobtainableCheckpointError(TimmSkError):
    """Raised if none of a checkpoint's sources gives its weights; names the reason for each."""


class PeerStoppedError(TimmSkError):
    """Raised if another process of the same torchrun has stopped; that process reports why."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like a mistyped one, as a sentence after a space; empty if none is like it."""
    found = difflib.get_close_matches(name.lower(), sorted({*known}), n=4)
    return f' Nearest: {", ".join(found)}.' if found else ''


def message_of(error: BaseException) -> str:
    """The message of an error for the command line: `FILE: no such file or directory.` for the system's `[Errno 2]`."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f'{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}.'
    return str(getattr(error, 'message', error)) or type(error).__name__
