"""Data sets of drawn shapes on disk, in the formats that `timm.data.create_dataset` opens."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_sk import shapes

CLASSES = ('circle', 'ring', 'star')
Images = Mapping[str, Sequence[Image.Image]]  # by class


def drawn(
    each: int, *, classes: Sequence[str] = CLASSES, seed: int = 0, size: int = 16
) -> dict[str, list[Image.Image]]:
    """So many images of each class."""
    found: dict[str, list[Image.Image]] = {name: [] for name in classes}
    pixels, labels = shapes.draw(30 * each, seed=seed, size=size)
    for image, label in zip(pixels, labels, strict=True):
        images = found.get(shapes.CLASS_NAMES[label])
        if images is not None and len(images) < each:
            images.append(Image.fromarray(image))
    assert all(len(images) == each for images in found.values())
    return found


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image as a file of a format of Pillow."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_folder(root: Path, images: Images) -> Path:
    """A folder with a folder of files for each class."""
    for name, members in images.items():
        (root / name).mkdir(parents=True)
        for index, image in enumerate(members):
            image.save(root / name / f'{index:03}.png')
    return root


def write_tar(file: Path, images: Images) -> Path:
    """A tar of such a folder."""
    with tarfile.open(file, 'w') as archive:
        archive.add(write_folder(file.with_suffix(''), images), arcname='images')
    return file


def write_mnist(root: Path, parts: Mapping[str, Sequence[Image.Image]]) -> Path:
    """Grey images of 28x28, as torchvision keeps MNIST: the k-th has the label k modulo 10."""
    raw = root / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for part, images in parts.items():
        pixels = np.stack([np.asarray(image.convert('L')) for image in images])
        labels = np.arange(len(images), dtype=np.uint8) % 10
        for kind, array in ((f'{part}-images-idx3', pixels), (f'{part}-labels-idx1', labels)):
            header = np.array([0x800 + array.ndim, *array.shape], dtype='>i4')
            (raw / f'{kind}-ubyte').write_bytes(header.tobytes() + array.tobytes())
    return root


def write_parquet(root: Path, parts: Mapping[str, Mapping[str, Sequence[Image.Image | bytes]]]) -> Path:
    """A data set of Hugging Face's library of images (or of bytes), by its parts."""
    datasets = pytest.importorskip('datasets')

    for part, images in parts.items():
        names = datasets.ClassLabel(names=[*images])
        raw, features = (
            datasets.Features(image=datasets.Image(decode=decode), label=names) for decode in (False, True)
        )
        rows = []
        for label, members in enumerate(images.values()):
            contents = [image if isinstance(image, bytes) else encoded(image, 'PNG') for image in members]
            rows += [dict(image=dict(bytes=content, path=None), label=label) for content in contents]
        table = datasets.Dataset.from_list(rows, features=raw).cast(features)
        (root / 'data').mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / 'data' / f'{part}-00000-of-00001.parquet')
    return root


def write_shards(
    root: Path, parts: Mapping[str, Sequence[Sequence[tuple[Image.Image | Path | bytes, int | None]]]]
) -> Path:
    """Shards of images (or of files or bytes) and labels, if any, by their parts, and the file that lists them."""
    root.mkdir()
    splits = {}
    for part, shards in parts.items():
        names = [f'{part}-{number:04}.tar' for number in range(len(shards))]
        for number, (name, shard) in enumerate(zip(names, shards, strict=True)):
            with tarfile.open(root / name, 'w') as archive:
                for index, (image, label) in enumerate(shard):
                    if isinstance(image, Path):
                        files = {image.suffix[1:]: image.read_bytes()}
                    else:
                        files = dict(png=image if isinstance(image, bytes) else encoded(image, 'PNG'))
                    if label is not None:
                        files['cls'] = str(label).encode()
                    for suffix, content in files.items():
                        member = tarfile.TarInfo(f'{number:04}-{index:04}.{suffix}')
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        lengths = [len(shard) for shard in shards]
        splits[part] = dict(name=part, num_samples=sum(lengths), filenames=names, shard_lengths=lengths)
    (root / '_info.json').write_text(json.dumps(dict(splits=splits)))
    return root


def in_folder(place: Path, parts: Mapping[str, Images]) -> dict[str, str]:
    """Settings that open images in folders, by their parts; '' where there are no parts."""
    for part, images in parts.items():
        write_folder(place / 'data' / part, images)
    return dict(data=str(place / 'data'))


def in_torchvision_folder(place: Path, parts: Mapping[str, Images]) -> dict[str, str]:
    return dict(data='torch/image_folder', data_dir=in_folder(place, parts)['data'])


def in_parquet(place: Path, parts: Mapping[str, Images]) -> dict[str, str]:
    folder = write_parquet(place / 'parquet', {part or 'train': images for part, images in parts.items()})
    return dict(data=f'hfds/{folder}', data_dir=str(place / 'cache'))


def in_tar(place: Path, parts: Mapping[str, Images]) -> dict[str, str]:
    return dict(data=str(write_tar(place / 'data.tar', parts[''])))
