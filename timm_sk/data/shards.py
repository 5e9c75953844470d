"""Names of the images in webdataset shards that cannot be decoded, which timm's reader skips silently."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .images import DECODING_ERRORS, reason

Sample = Mapping[str, Any]

_DECODE_STAGE = -2  # the last but one of timm's pipeline


class NamingDecoder:
    """A pipeline stage of webdataset that decodes, and records what it cannot decode.

    Args:
        decode: Decodes a sample; returns None to skip it.
    """

    def __init__(self, decode: Callable[[Sample], Sample | None]) -> None:
        self.decode = decode
        self._bad: list[str] = []

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            try:
                decoded = self.decode(sample)
            except (*DECODING_ERRORS, KeyError) as error:  # KeyError without a label
                self._bad.append(f'{sample.get("__url__")}: {sample.get("__key__")}: {reason(error)}')
                continue
            if decoded is not None:
                yield decoded

    def pop_bad(self) -> list[str]:
        """The names since the last call, with the reasons."""
        found, self._bad = self._bad, []
        return found


def record_bad_images(reader: Any) -> NamingDecoder:
    """Replace the decoding stage of timm's `ReaderWds`, which has not begun to read, by one that records failures."""
    reader._lazy_init()  # builds the pipeline; timm has no public function for it
    stages = reader.ds.pipeline
    stages[_DECODE_STAGE] = decoder = NamingDecoder(stages[_DECODE_STAGE].args[0])  # of `wds.map(function)`
    return decoder
