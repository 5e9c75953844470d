"""The pooled features of a data set as files, written in chunks by all processes, and continued after a kill."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..atomic_io import whole_file
from ..data import ImageDataset, eval_loader, normalizer
from ..data.loading import Transform
from ..distributed import DistributedContext, init_distributed
from ..pretrained import save_safetensors
from .config import Config
from .dataset import open_uncut
from .model import build_model
from .preprocessing import data_config_of, transforms_of
from .train_state import autocast_of

INDEX, SOURCE = 'index.json', 'source.json'
FORMS = ('safetensors', 'npy')
_LAST = {'safetensors': 'features', 'npy': 'names'}  # the file of a chunk with which it is complete


@dataclass
class _Chunk:
    """What one chunk holds: of each image that could be read its embedding, label and name; why of the others."""

    number: int
    embeddings: Tensor
    labels: list[int]
    names: list[str]
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Facts:
    """What the index says of a chunk."""

    number: int
    count: int
    width: int
    bad: list[str]


def write_features(
    model: nn.Module,
    images: ImageDataset,
    transform: Transform,
    *,
    folder: Path,
    context: DistributedContext,
    prepare: Callable[[Tensor], Tensor],
    batch_size: int,
    workers: int,
    form: str = 'safetensors',
    chunk: int = 4096,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    source: str = '',
    max_bad: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Path:
    """Write the embeddings of all images, in their order, with their labels and file names.

    Chunk k has the images from k * `chunk` on and is written by process k modulo the number of processes, whole or
    not at all. A chunk that is there is not computed again, so the same call continues what was stopped, and its files
    are the same byte for byte. `index.json` is written last.

    Args:
        model: Of timm's kind, on the processes' device; it is called in eval mode and left as it was.
        images: The images.
        transform: What makes 8-bit pixels [C, H, W] of an image, the same each time.
        folder: Where to; new, empty, or begun by the same call.
        context: The processes.
        prepare: What makes the model's input of 8-bit images [B, C, H, W].
        batch_size: ImageDataset in a batch.
        workers: Processes that load, for each that computes.
        form: 'safetensors' (`embeddings` [n, D] in float32, `labels` [n], and in the header the JSON list `names`) or
            'npy' (`embeddings-….npy`, `labels-….npy`, `names-….txt` with a line for each, and in `bad-….json` why
            others are missing).
        chunk: ImageDataset in a chunk.
        autocast: The context of a forward pass.
        source: What to call the data.
        max_bad: ImageDataset that cannot be read to leave out before it fails.
        on_batch: Called after each batch of this process with the number of its images.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds something else, or more images than allowed cannot be read.
    """
    if form not in FORMS:
        raise ValueError(f'form must be {" or ".join(FORMS)}, got {form!r}.')
    if chunk < 1:
        raise ValueError(f'chunk must be above 0, got {chunk}.')
    wanted = _identity(model, images, transform, source=source, form=form, chunk=chunk)
    problems = context.all_gather(_begin(folder, wanted) if context.is_main else None)
    if problems[0]:
        raise ValueError(problems[0])
    mine: list[_Facts] = []
    was_training = model.training
    model.eval()
    try:
        for number in range(context.rank, -(-len(images) // chunk), context.size):
            size = min(chunk, len(images) - number * chunk)
            facts = _read_facts(folder, number, form, size)
            if facts is None:
                part = images.subset(range(number * chunk, number * chunk + size))
                loader = eval_loader(
                    part,
                    transform,
                    batch_size=batch_size,
                    context=DistributedContext(device=context.device),
                    workers=workers,
                )
                embed = _embedder(model, prepare, autocast)
                found = _compute(number, part, loader.epoch(), embed, transform, on_batch)
                _write(folder, found, form)
                facts = _Facts(number, len(found.labels), found.embeddings.shape[1], found.bad)
            mine.append(facts)
            if sum(len(facts.bad) for facts in mine) > max_bad:
                break
    finally:
        model.train(was_training)
    chunks = sorted((facts for part in context.all_gather(mine) for facts in part), key=lambda facts: facts.number)
    bad = [line for facts in chunks for line in facts.bad]
    if len(bad) > max_bad:
        for facts in mine:
            if facts.bad:  # so that they are computed again once the images are mended
                _paths(folder, facts.number, form)[_LAST[form]].unlink()
        more = f' and {len(bad) - 1} more' if len(bad) > 1 else ''
        raise ValueError(f'An image cannot be read: {bad[0]}{more}. {max_bad} may be left out: mend it, or allow more.')
    if context.is_main:
        _write_index(folder, wanted, chunks, bad)
    context.barrier()
    return folder


def _embedder(
    model: nn.Module, prepare: Callable[[Tensor], Tensor], autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Tensor], Tensor]:
    """What makes pooled features [B, D] in float32 of 8-bit images [B, C, H, W]."""

    def embed(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast():
            features = model.forward_features(prepare(images))  # type: ignore[operator]
            return model.forward_head(features, pre_logits=True).float().cpu()  # type: ignore[operator]

    return embed


def _compute(
    number: int,
    part: ImageDataset,
    batches: Any,
    embed: Callable[[Tensor], Tensor],
    transform: Transform,
    on_batch: Callable[[int], None] | None,
) -> _Chunk:
    embeddings: list[Tensor] = []
    found = _Chunk(number, torch.empty(0), [], [])
    for batch in batches:
        if len(batch.images):
            embeddings.append(embed(batch.images))
        found.labels += batch.targets.tolist()
        found.names += [part.name(index) for index in batch.indices.tolist()]
        found.bad += batch.bad
        if on_batch is not None:
            on_batch(len(batch.targets) + len(batch.bad))
    if not embeddings:  # a chunk without a readable image has the same width as the others
        pixels = torch.as_tensor(np.asarray(transform(Image.new(part.mode, (64, 64)))))
        embeddings = [embed(pixels[None])[:0]]
    found.embeddings = torch.cat(embeddings)
    return found


def _write(folder: Path, chunk: _Chunk, form: str) -> None:
    labels = torch.tensor(chunk.labels, dtype=torch.int64)
    texts = {name: json.dumps(getattr(chunk, name), ensure_ascii=False) for name in ('names', 'bad')}
    paths = _paths(folder, chunk.number, form)
    if form == 'safetensors':
        save_safetensors(dict(embeddings=chunk.embeddings, labels=labels), paths['features'], metadata=texts)
        return
    for name, tensor in (('embeddings', chunk.embeddings), ('labels', labels)):
        with whole_file(paths[name]) as file:
            np.save(file, tensor.numpy())
    _write_text(paths['bad'], texts['bad'])
    lines = (' '.join(name.splitlines()) for name in chunk.names)
    _write_text(paths['names'], ''.join(f'{line}\n' for line in lines))


def _read_facts(folder: Path, number: int, form: str, size: int) -> _Facts | None:
    """What a chunk that is there says of itself; None if it is not there, or is not one of so many images."""
    paths = _paths(folder, number, form)
    try:
        if form == 'safetensors':
            with safe_open(paths['features'], 'pt') as file:
                count, width = file.get_slice('embeddings').get_shape()
                names, bad = (json.loads(file.metadata()[name]) for name in ('names', 'bad'))
        else:
            names = paths['names'].read_text(encoding='utf-8').splitlines()
            count, width = np.load(paths['embeddings'], mmap_mode='r').shape
            bad = json.loads(paths['bad'].read_text(encoding='utf-8'))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return _Facts(number, count, width, bad) if len(names) == count == size - len(bad) else None


def _paths(folder: Path, number: int, form: str) -> dict[str, Path]:
    if form == 'safetensors':
        return {'features': folder / f'features-{number:05}.safetensors'}
    endings = {'embeddings': 'npy', 'labels': 'npy', 'names': 'txt', 'bad': 'json'}
    return {name: folder / f'{name}-{number:05}.{ending}' for name, ending in endings.items()}


def _write_index(folder: Path, wanted: dict[str, Any], chunks: list[_Facts], bad: list[str]) -> None:
    names = ('features',) if wanted['form'] == 'safetensors' else ('embeddings', 'labels', 'names')
    listed = []
    for facts in chunks:
        paths = _paths(folder, facts.number, wanted['form'])
        listed.append(
            dict(files=[paths[name].name for name in names], first=facts.number * wanted['chunk'], count=facts.count)
        )
    index = dict(
        model=wanted['model'],
        source=wanted['source'],
        dimensions=chunks[0].width,
        count=sum(facts.count for facts in chunks),
        chunks=listed,
        bad=bad,
    )
    _write_text(folder / INDEX, json.dumps(index, indent=2, ensure_ascii=False) + '\n')


def _identity(
    model: nn.Module, images: ImageDataset, transform: Transform, *, source: str, form: str, chunk: int
) -> dict[str, Any]:
    """What must be the same for two calls to write the same files."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return dict(
        model='.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag')))) or type(model).__name__,
        weights=digest.hexdigest(),
        source=source,
        images=len(images),
        first=images.name(0),
        last=images.name(len(images) - 1),
        preprocessing=re.sub(r' at 0x[0-9a-f]+', '', ' '.join(repr(transform).split())),
        form=form,
        chunk=chunk,
    )


def _begin(folder: Path, wanted: dict[str, Any]) -> str | None:
    """Claim a folder, and clear it of what a killed process left half written; gives what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob('*.partial'):
        leftover.unlink()
    if not any(folder.iterdir()):
        _write_text(folder / SOURCE, json.dumps(wanted, indent=2, ensure_ascii=False) + '\n')
        return None
    try:
        there = json.loads((folder / SOURCE).read_text(encoding='utf-8'))
        held = {name: there.get(name) for name in wanted}
    except (OSError, ValueError, AttributeError):
        return f'{folder} is not empty and holds no features that could be continued: name a new folder.'
    other = [f'{name} {held[name]} instead of {wanted[name]}' for name in wanted if held[name] != wanted[name]]
    return f'{folder} holds other features: {"; ".join(other)}. Name a new folder.' if other else None


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def extract(config: Config) -> Path:
    """Write the embeddings of all images; under torchrun its processes share them.

    A data set with two parts gives two folders, `train` and `validation`; one with no validation part gives one,
    `all`. What an earlier call has written is not computed again.

    Args:
        config: The settings, of which `features` names the folder.

    Returns:
        The folder.

    Raises:
        ValueError: If the data or the model do not fit, or the folder holds others' embeddings.
        OSError: If it cannot be written.
    """
    root = Path(config.features or '')
    with init_distributed(config.device) as context:
        opening = partial(open_uncut, config)
        parts = context.main_process_first(opening) if config.dataset_download else opening()
        model = build_model(config, 0)
        data_config = data_config_of(config, model)
        judging = transforms_of(config, data_config)[1]
        model.to(context.device).eval()
        for name, images in parts.items():
            if not isinstance(images, ImageDataset):
                raise ValueError('Embeddings are written of images that have numbers; a stream of shards has none.')
            write_features(
                model,
                images,
                judging,
                folder=root / name,
                context=context,
                prepare=normalizer(data_config['mean'], data_config['std'], context.device),
                batch_size=config.batch_size,
                workers=config.workers,
                form=config.features_format,
                autocast=autocast_of(config, context.device),
                source=f'{config.data or "synthetic"} {name}' + (f' in {config.amp_dtype}' if config.amp else ''),
                max_bad=config.max_bad_images,
            )
    return root
