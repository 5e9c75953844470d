"""Names for the images in shards of webdataset that cannot be decoded, which timm's reader leaves out unnamed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .images import DECODING_ERRORS, reason

Sample = Mapping[str, Any]

_DECODES = -2  # timm's last stage but one


class NamingDecoder:
    """A stage of a pipeline of webdataset that decodes, and remembers what it cannot decode.

    Args:
        decode: What makes a decoded sample of one; None if that is to be left out.
    """

    def __init__(self, decode: Callable[[Sample], Sample | None]) -> None:
        self.decode = decode
        self._bad: list[str] = []

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            try:
                decoded = self.decode(sample)
            except (*DECODING_ERRORS, KeyError) as error:  # the last one where it has no label
                self._bad.append(f'{sample.get("__url__")}: {sample.get("__key__")}: {reason(error)}')
                continue
            if decoded is not None:
                yield decoded

    def bad(self) -> list[str]:
        """The names of those since the last call, each with the reason."""
        found, self._bad = self._bad, []
        return found


def name_the_undecodable(reader: Any) -> NamingDecoder:
    """Have timm's reader of shards remember what it cannot decode.

    Args:
        reader: A `timm.data.readers.reader_wds.ReaderWds`, which has not begun to read.

    Returns:
        The stage that decodes from now on.
    """
    reader._lazy_init()  # builds the pipeline; timm has no public way to do so without reading
    stages = reader.ds.pipeline
    stages[_DECODES] = decoder = NamingDecoder(stages[_DECODES].args[0])  # a `wds.map`, whose argument is the function
    return decoder
