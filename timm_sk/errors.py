"""The exceptions a caller may catch. All are `ValueError`s: the message says the rule, what came and what to do."""


class TimmSkError(ValueError):
    """Base of the project's own exceptions; never raised itself."""


class UnknownModelError(TimmSkError):
    """Raised when a name is neither an architecture nor one of its checkpoints; names the nearest ones."""


class NoWeightsError(TimmSkError):
    """Raised when pretrained weights are asked of an architecture or a tag that has none."""


class CorruptCheckpointError(TimmSkError):
    """Raised before loading when a checkpoint's file is missing or is not the one that was published."""


class MismatchedCheckpointError(TimmSkError):
    """Raised before loading when a checkpoint's keys or shapes are not the model's; names them."""


class UnloadableModelError(TimmSkError):
    """Raised when a model's folder, repository or file cannot be read or is not what it should be; names the model."""


class UnpublishableError(TimmSkError):
    """Raised before anything is built or sent when a checkpoint may not, or cannot, be published; says why."""


class ReleaseError(TimmSkError):
    """Raised when a hub does not do, or does not hold, what a release needs; names the repository."""


class UnreadableImageError(TimmSkError):
    """Raised when a file is not a picture that can be decoded in full; names the file."""


class UnreadableCheckpointError(TimmSkError):
    """Raised when a checkpoint's file is damaged, hostile or of a format that is not read; names file and reason."""


class DownloadError(TimmSkError):
    """Raised when a file cannot be downloaded whole; says from where and why."""


class UnwritableStoreError(TimmSkError):
    """Raised when the local store of checkpoints cannot be written; names its folder."""


class UnobtainableCheckpointError(TimmSkError):
    """Raised when none of a checkpoint's sources gives its weights; says why of each, and what to do."""


class PeerStoppedError(TimmSkError):
    """Raised when another of the processes that work together has stopped, which says why by itself."""
