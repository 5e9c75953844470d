"""The exceptions that callers may catch. All are `ValueError`s; the message says what is wrong and what to do."""


class TimmSkError(ValueError):
    """Base class of the project's exceptions."""


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
