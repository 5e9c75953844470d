"""What a model repository says of its model: the card, filled from facts only, and the results for the Hub's tables."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..checkpoints import Checkpoint, Source, of_arch
from ..checkpoints.describe import NOT_ESTABLISHED
from ..checkpoints.rows import IMAGENET
from ..models import listing
from ..pretrained import Origin, sha256_of

EVAL_RESULTS = '.eval_results'

# Ids of data sets on the Hub, by what the table says was measured on.
_HUB_DATASETS = {
    IMAGENET: ('ImageNet-1k', 'ILSVRC/imagenet-1k'),
    'Imagenette validation': ('Imagenette', 'frgfm/imagenette'),
}
MAIN_SETTINGS = ('lr', 'epochs', 'batch_size', 'weight_decay')
_NO_TECHNIQUES = (*MAIN_SETTINGS, 'seed')


def render_card(
    row: Checkpoint,
    *,
    repo_id: str,
    weights: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: str = '',
    base_model: str | None = None,
    origin: Origin | None = None,
    trained_on: str | None = None,
    story: str | None = None,
) -> str:
    """Fill the template `model_card.md`.

    Args:
        row: The facts.
        repo_id: The repository that the card's examples load from.
        weights: Its `model.safetensors`; None leaves size and sha256 open.
        settings: How the weights were trained: `lr`, `epochs`, `batch_size`, `weight_decay`, and whatever else.
        notes: A text that follows, such as the card of a bundled folder; its headings become one level deeper.
        base_model: The repository of the weights that these were fine-tuned from.
        origin: What the weights were made from.
        trained_on: The training data, where the row does not tell them.
        story: Where the weights come from, where they come from no source of the table.
    """
    settings = settings or {}
    entry = listing.entry(row)
    size = 'x'.join(map(str, row.input_size))
    techniques = ', '.join(f'{key} {value}' for key, value in settings.items() if key not in _NO_TECHNIQUES)
    facts = dict(
        metadata=_metadata(row, base_model),
        name=row.name,
        arch=row.arch,
        library='timm_sk' if of_arch(row.arch) else 'timm',
        repo=repo_id,
        summary=f'`{row.arch}`, an image classifier; weights by {row.origin}.' if row.origin else f'`{row.arch}`.',
        parameters=f'{entry.params:,}',
        flops=f'{entry.macs / 1e9:.4g} G multiply-adds at {size}',
        file_size=f'{weights.stat().st_size:,} bytes' if weights else NOT_ESTABLISHED,
        sha256=sha256_of(weights) if weights else NOT_ESTABLISHED,
        licence=_known(row.licence),
        origin=_known(row.origin),
        training_data=_cell(trained_on) if trained_on else _training_data(row),
        techniques=techniques or NOT_ESTABLISHED,
        **{key: _known(settings.get(key)) for key in MAIN_SETTINGS},
        recipe=f'`{row.recipe}`' if row.recipe else NOT_ESTABLISHED,
        input_size=size,
        mean=_known(row.mean),
        std=_known(row.std),
        interpolation=_known(row.interpolation),
        crop=f'{row.crop_pct:.4g} of the resized short edge' if row.crop_pct else NOT_ESTABLISHED,
        classes=f'{row.num_classes:,}' + (f': {_shortened(row.label_names)}' if row.label_names else ''),
        accuracy=_accuracy(row),
        whence=story or f'{_sources(row)}\n\n{_conversion(row, origin)}',
        notes=_deeper(notes),
    )
    template = Template(files(__package__).joinpath('model_card.md').read_text(encoding='utf-8'))
    return template.substitute(facts).rstrip() + '\n'


def eval_results(row: Checkpoint) -> dict[str, str]:
    """The Hub's files of evaluation results by their path; none where the data set is not one of the Hub's.

    The format is that of the Hub's documentation: a list of entries with `dataset.id`, `dataset.task_id` and `value`.
    The Hub shows an entry only once the data set is registered as a benchmark with such a task.
    """
    if row.dataset not in _HUB_DATASETS or row.top1 is None:
        return {}
    title, dataset = _HUB_DATASETS[row.dataset]
    size = 'x'.join(map(str, row.input_size[1:]))
    entry = dict(
        dataset=dict(id=dataset, task_id='default'),
        value=row.top1,
        notes=f'top-1 accuracy in percent on the validation split at {size}; {row.evaluation or NOT_ESTABLISHED}',
    )
    return {f'{EVAL_RESULTS}/{title.lower()}.yaml': yaml.safe_dump([entry], sort_keys=False)}


def _metadata(row: Checkpoint, base_model: str | None) -> str:
    """The YAML at a card's head."""
    dataset = _HUB_DATASETS.get(row.dataset or '')
    family = [] if not of_arch(row.arch) else ['split-attention' if 'resnest' in row.arch else 'selective-kernel']
    results = _model_index(row)
    data = ModelCardData(
        license=row.licence,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'transformers', *family],
        datasets=[dataset[1]] if dataset else None,
        base_model=base_model,
        model_name=row.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()


def _model_index(row: Checkpoint) -> list[EvalResult]:
    if row.dataset is None:
        return []
    title, dataset = _HUB_DATASETS.get(row.dataset, (row.dataset, row.tag))
    return [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset,
            dataset_name=title,
            dataset_split='validation' if row.dataset in _HUB_DATASETS else None,
            metric_type='accuracy',
            metric_name=f'{metric} accuracy',
            metric_value=value,
        )
        for metric, value in (('Top-1', row.top1), ('Top-5', row.top5))
        if value is not None
    ]


def _training_data(row: Checkpoint) -> str:
    if row.dataset in _HUB_DATASETS:
        return f'{_HUB_DATASETS[row.dataset][0]}, training split'
    return 'see the notes below' if row.bundled else NOT_ESTABLISHED


def _accuracy(row: Checkpoint) -> str:
    if row.dataset is None or row.top1 is None:
        return f'{NOT_ESTABLISHED.capitalize()}.'
    top5 = f', top-5 {row.top5:.2f} %' if row.top5 is not None else ''
    return f'Top-1 {row.top1:.2f} %{top5} on {row.dataset}, reported by: {row.evaluation or NOT_ESTABLISHED}.'


def _sources(row: Checkpoint) -> str:
    """A table of the places and hashes; a hash is that of the place's own file."""
    if not row.sources:
        return f'{NOT_ESTABLISHED.capitalize()}.'
    lines = ['| from | format | hash of the file there |', '|---|---|---|']
    lines += [
        f'| {_place(source)} | {source.format} | {hash_of(source) or NOT_ESTABLISHED} |' for source in row.sources
    ]
    return '\n'.join(lines)


def _place(source: Source) -> str:
    if source.kind == 'bundled':
        return 'timm_sk itself'
    if source.kind != 'hub':
        return f'<{source.location}>'
    revision = f' at `{source.revision}`' if source.revision else ''
    classifier = '' if source.has_classifier else ', without the classifier'
    return f'`{source.filename}` of `{source.location}`{revision}{classifier}'


def hash_of(source: Source) -> str | None:
    """What is known of a source's hash, in words; None where nothing is."""
    if source.sha256:
        return f'sha256 `{source.sha256}`'
    if source.sha256_prefix:
        return f'sha256 begins with `{source.sha256_prefix}`'
    return f'sha1 of the content `{source.content_sha1}`' if source.content_sha1 else None


def _conversion(row: Checkpoint, origin: Origin | None) -> str:
    if not row.sources:
        return f'Exported by `timm-sk weights export` from a training checkpoint of `{row.arch}`.'
    if row.bundled:
        return 'The file is the one that ships with timm_sk, unchanged.'
    convert = f'`timm-sk weights convert FILE --to {row.name}` makes these weights of a file above with a classifier.'
    if origin is None:
        return convert
    return f'{convert} They were made of <{origin.location}>, whose sha256 is `{origin.sha256}`.'


def _known(fact: object) -> str:
    if fact is None:
        return NOT_ESTABLISHED
    return _cell(', '.join(map(str, fact)) if isinstance(fact, tuple) else str(fact))


def _shortened(names: tuple[str, ...], most: int = 12) -> str:
    return _cell(', '.join(names[:most])) + (f' and {len(names) - most} more' if len(names) > most else '')


def _cell(text: str) -> str:
    """A text that cannot end its cell or line of a table."""
    return ' '.join(text.replace('|', r'\|').split())


def _deeper(notes: str) -> str:
    """A card's body without its metadata, its headings one level deeper; a comment in a code block is no heading."""
    body = re.sub(r'\A---\n.*?\n---\n', '', notes, flags=re.DOTALL)
    parts = re.split(r'(^```.*?^```$)', body, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r'^(#+ )', r'#\1', part, flags=re.MULTILINE) for part in parts[::2]]
    return f'\n{"".join(parts)}' if body else ''
