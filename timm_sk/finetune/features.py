"""The pooled features of a data set as files, written in chunks by all processes; a killed call can be continued."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..atomic_io import atomic_write, leftovers, read_json, write_json
from ..data import Batch, ImageDataset, eval_loader, fingerprint, normalizer, with_channels
from ..data.images import blank_image, require_few_bad
from ..data.loading import Transform
from ..distributed import DistributedContext, init_distributed
from ..inference.prediction import checkpoint_name, pooled_features
from ..models.inputs import preprocessing
from ..pretrained import save_safetensors
from ..registry import require_model
from .config import Config
from .dataset import open_parts
from .model import build_model
from .preprocessing import build_transforms
from .train_state import build_autocast

INDEX, SOURCE = 'index.json', 'source.json'
VERSION = 1  # of the files' layout


def extract(config: Config) -> Path:
    """Write the embeddings of all images; under torchrun its processes share the work.

    A data set with two parts gives the folders `train` and `validation`, one without a validation part the folder
    `all`. What an earlier call has written is not computed again.

    Args:
        config: Settings; `features` is the folder.

    Returns:
        The folder.

    Raises:
        ValueError: If the data or the model do not fit, or the folder holds other embeddings.
        OSError: If a file cannot be written.
    """
    config = config.changed(model=require_model(config.model))
    root = Path(config.features or '')
    with init_distributed(config.device) as context:
        open_data = partial(open_parts, config)
        train, val = context.main_process_first(open_data) if config.dataset_download else open_data()
        model = build_model(config, 0)
        inputs = preprocessing(model, any_channels=True, img_size=config.img_size)
        model.to(context.device).eval()
        parts = {'all': train} if val is None else {'train': train, 'validation': val}
        for name, images in parts.items():
            if not isinstance(images, ImageDataset):
                raise ValueError('--features needs a data set with an index: streams (wds/, hfids/, tfds/) have none.')
            write_features(
                root / name,
                with_channels(images, inputs['input_size'][0]),
                model,
                build_transforms(config, inputs)[1],
                config=config,
                context=context,
                prepare=normalizer(inputs['mean'], inputs['std'], context.device),
                source=f'{config.data or "synthetic"} {name}' + (f' in {config.amp_dtype}' if config.amp else ''),
            )
    return root


def write_features(
    folder: Path,
    images: ImageDataset,
    model: nn.Module,
    transform: Transform,
    *,
    config: Config,
    context: DistributedContext,
    prepare: Callable[[Tensor], Tensor],
    source: str,
    chunk: int = 4096,
) -> None:
    """Write the embeddings of all images, in their order, with their labels and file names.

    The folder is new, empty, or begun by the same call; the transform to 8-bit pixels [C, H, W] is deterministic.

    Chunk k has the images from k * `chunk` on and is written atomically by process k modulo the number of processes.
    A complete chunk is not computed again, so the same call continues an interrupted one, and its files are the same
    byte for byte. `index.json` is written last.

    In `safetensors` a chunk is a file with `embeddings` [n, D] in float32, `labels` [n], and in the header the JSON
    lists `names` and `bad`; in `npy` it is `embeddings-….npy`, `labels-….npy`, and `images-….json` with `names` and
    `bad`.

    Raises:
        ValueError: If the folder holds something else, or too many images cannot be read.
    """
    form, autocast = config.features_format, build_autocast(config, context.device)
    identity = _identity(model, images, transform, source=source, form=form, chunk=chunk)
    context.run_in_main(partial(_claim, folder, identity))

    def embed(batch: Tensor) -> Tensor:
        with torch.inference_mode(), autocast():
            return pooled_features(model, prepare(batch)).cpu()

    own: list[dict[str, Any]] = []
    alone = DistributedContext(device=context.device)
    for number in range(context.rank, -(-len(images) // chunk), context.size):
        part = images.subset(range(number * chunk, min((number + 1) * chunk, len(images))))
        paths = _paths(folder, number, form)
        data = fingerprint(part)
        found = _read_chunk(paths, number * chunk, data)
        if found is None or found['bad']:  # images may have been fixed since
            loader = eval_loader(part, transform, batch_size=config.batch_size, context=alone, workers=config.workers)
            _write_chunk(paths, part, loader.epoch(), embed, transform, data=data)
            found = _read_chunk(paths, number * chunk, data)
        if found is None:
            raise OSError(f'{folder}: chunk {number} cannot be read.')
        own.append(found)
        if sum(len(found['bad']) for found in own) > config.max_bad_images:
            break
    chunks = sorted((chunk for part in context.all_gather(own) for chunk in part), key=lambda chunk: chunk['first'])
    bad = [line for chunk in chunks for line in chunk['bad']]
    require_few_bad(bad, config.max_bad_images)
    if context.is_main:
        facts = dict(model=identity['model'], source=source, dimensions=chunks[0]['dimensions'])
        facts |= dict(count=sum(chunk['count'] for chunk in chunks), bad=bad, chunks=chunks)
        write_json(folder / INDEX, facts, version=VERSION)
    context.barrier()


def _write_chunk(
    paths: dict[str, Path],
    part: ImageDataset,
    batches: Iterator[Batch],
    embed: Callable[[Tensor], Tensor],
    transform: Transform,
    *,
    data: str,
) -> None:
    parts: list[Tensor] = []
    labels: list[int] = []
    names: list[str] = []
    bad: list[str] = []
    for batch in batches:
        if len(batch.images):
            parts.append(embed(batch.images))
        labels += batch.targets.tolist()
        names += [part.name(index) for index in batch.indices.tolist()]
        bad += batch.bad
    if not parts:  # a chunk without a readable image has the width of the others
        blank = torch.as_tensor(np.asarray(transform(blank_image(part.channels))))
        parts = [embed(blank[None])[:0]]
    embeddings = torch.cat(parts)
    described = dict(names=names, bad=bad, data=data)
    if 'features' in paths:
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
        tensors = dict(embeddings=embeddings, labels=torch.tensor(labels, dtype=torch.int64))
        save_safetensors(tensors, paths['features'], metadata=texts)
    else:
        for name, array in (('embeddings', embeddings.numpy()), ('labels', np.array(labels, dtype=np.int64))):
            with atomic_write(paths[name]) as file:
                np.save(file, array)
        write_json(paths['images'], described)


def _read_chunk(paths: dict[str, Path], first: int, data: str) -> dict[str, Any] | None:
    """The index's entry of a chunk of the images with a fingerprint; None if it is missing, or of others."""
    try:
        if 'features' in paths:
            with safe_open(paths['features'], 'pt') as file:
                count, width = file.get_slice('embeddings').get_shape()
                listed = {name: json.loads(text) for name, text in file.metadata().items()}
        else:
            count, width = np.load(paths['embeddings'], mmap_mode='r').shape
            listed = json.loads(paths['images'].read_text(encoding='utf-8'))
        names, bad, found = (listed[name] for name in ('names', 'bad', 'data'))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    if found != data or len(names) != count:
        return None
    files = [path.name for path in paths.values()]
    return dict(files=files, first=first, count=count, dimensions=width, bad=bad)


def _paths(folder: Path, number: int, form: str) -> dict[str, Path]:
    if form == 'safetensors':
        return {'features': folder / f'features-{number:05}.safetensors'}
    endings = dict(embeddings='npy', labels='npy', images='json')
    return {name: folder / f'{name}-{number:05}.{ending}' for name, ending in endings.items()}


def _identity(
    model: nn.Module, images: ImageDataset, transform: Transform, *, source: str, form: str, chunk: int
) -> dict[str, Any]:
    """What must be equal for two calls to write the same files."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return dict(
        model=checkpoint_name(model),
        weights=digest.hexdigest(),
        source=source,
        images=len(images),
        first=images.name(0),
        last=images.name(len(images) - 1),
        preprocessing=re.sub(r' at 0x[0-9a-f]+', '', ' '.join(repr(transform).split())),
        form=form,
        chunk=chunk,
    )


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Claim a folder, and remove what a killed process left incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    if {*folder.iterdir()} <= {*leftovers(folder, SOURCE)}:
        write_json(folder / SOURCE, identity, version=VERSION)
    try:
        found = read_json(folder / SOURCE, version=VERSION)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{folder} is not empty and holds no features to continue: {error}. Name a new one.'
        ) from error
    other = [
        f'{name} {found.get(name)} instead of {value}' for name, value in identity.items() if found.get(name) != value
    ]
    if other:
        raise ValueError(f'{folder} holds other features: {"; ".join(other)}. Name a new folder.')
    for leftover in leftovers(folder):
        leftover.unlink()
