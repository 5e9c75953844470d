"""Images in webdataset shards: decoded as all others; those that cannot be are named, and not skipped silently."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from .images import reason

Sample = Mapping[str, Any]


class NamingDecoder:
    """A pipeline stage of webdataset that decodes, and records what it cannot decode.

    The first of the endings `image_keys` that a sample has is decoded; its label is in its JSON, or without a
    `label_key` in its file `cls`.
    """

    def __init__(self, decode: Callable[[BinaryIO], Any], *, image_keys: list[str], label_key: str) -> None:
        self.decode, self.image_keys, self.label_key = decode, image_keys, label_key
        self._bad: list[str] = []

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            try:
                target = int(json.loads(sample['json'])[self.label_key] if self.label_key else sample['cls'])
                if self.label_key and target < 0:  # timm's mark of images without a label
                    continue
                key = next(key for key in self.image_keys if key in sample)
                image = self.decode(io.BytesIO(sample[key]))
            except Exception as error:  # decoders raise many kinds on damaged files
                cause = {KeyError: 'no label', StopIteration: 'no image'}.get(type(error)) or reason(error)
                self._bad.append(f'{sample.get("__url__")}: {sample.get("__key__")}: {cause}')
                continue
            yield dict(image=image, target=target)

    def pop_bad(self) -> list[str]:
        """The names since the last call, with the reasons."""
        found, self._bad = self._bad, []
        return found


def decode_with(reader: Any, decode: Callable[[BinaryIO], Any]) -> NamingDecoder:
    """Replace the last stages of timm's `ReaderWds`, which has not begun to read: they decode and rename."""
    reader._lazy_init()  # builds the pipeline; timm has no public function for it
    decoder = NamingDecoder(decode, image_keys=reader.input_key.split(';'), label_key=reader.split_info.alt_label)
    reader.ds.pipeline[-2:] = [decoder]
    return decoder
