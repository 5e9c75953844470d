"""Model cards, filled from the table's facts alone, and evaluation results in the Hub's format."""

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..checkpoints import Checkpoint, Source, of_arch
from ..checkpoints.descriptions import NOT_ESTABLISHED
from ..checkpoints.rows import IMAGENET
from ..models.costs import cost
from ..pretrained import Origin, sha256_of

# Title and id on the Hub of the data sets that the table names.
_HUB_DATASETS = {
    IMAGENET: ('ImageNet-1k', 'ILSVRC/imagenet-1k'),
    'Imagenette validation': ('Imagenette', 'frgfm/imagenette'),
}
MAIN_SETTINGS = ('lr', 'epochs', 'batch_size', 'weight_decay')
_NO_TECHNIQUES = (*MAIN_SETTINGS, 'seed')
_MAX_CLASS_NAMES = 12


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
    provenance: str | None = None,
) -> str:
    """Fill the template `model_card.md`.

    Args:
        row: Row of the table.
        repo_id: Repository that the examples load from.
        weights: Weights file, for its size and hash; 'not established' if None.
        settings: Training settings: `lr`, `epochs`, `batch_size`, `weight_decay`, and any others.
        notes: Markdown to append, such as the card of a bundled folder; its headings become one level deeper.
        base_model: Repository of the weights that these were fine-tuned from.
        origin: Source of the weights.
        trained_on: Training data, if the row does not name it.
        provenance: Where the weights come from, if they have no source in the table.
    """
    settings = settings or {}
    params, macs = cost(row)
    size = 'x'.join(map(str, row.input_size))
    techniques = ', '.join(f'{key} {value}' for key, value in settings.items() if key not in _NO_TECHNIQUES)
    fields = dict(
        metadata=_metadata(row, base_model),
        name=row.name,
        arch=row.arch,
        library='timm_sk' if of_arch(row.arch) else 'timm',
        repo=repo_id,
        summary=f'`{row.arch}`, an image classifier; weights by {_known(row.origin)}.'
        if row.origin
        else f'`{row.arch}`.',
        parameters=f'{params:,}',
        flops=f'{macs / 1e9:.4g} G multiply-adds at {size}',
        file_size=f'{weights.stat().st_size:,} bytes' if weights else NOT_ESTABLISHED,
        sha256=sha256_of(weights) if weights else NOT_ESTABLISHED,
        **{name: _known(getattr(row, name)) for name in ('licence', 'origin', 'mean', 'std', 'interpolation')},
        training_data=as_markdown(trained_on or _training_data(row)),
        techniques=as_markdown(techniques) or NOT_ESTABLISHED,
        **{key: _known(settings.get(key)) for key in MAIN_SETTINGS},
        recipe=f'`{row.recipe}`' if row.recipe else NOT_ESTABLISHED,
        input_size=size,
        crop=f'{row.crop_pct:.4g} of the resized short edge' if row.crop_pct else NOT_ESTABLISHED,
        classes=f'{row.num_classes:,}' + _class_names(row),
        accuracy=_accuracy(row),
        sources=provenance or f'{_sources(row)}\n\n{_conversion(row, origin)}',
        notes=_deeper(notes),
    )
    template = Template(files(__package__).joinpath('model_card.md').read_text(encoding='utf-8'))
    return template.substitute(fields).rstrip() + '\n'


def eval_results(row: Checkpoint) -> dict[str, str]:
    """The Hub's files of evaluation results by path; none if the data set is not on the Hub.

    A file is a list of entries with `dataset.id`, `dataset.task_id` and `value`. The Hub shows an entry once the data
    set is registered as a benchmark with this task.
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
    return {f'.eval_results/{title.lower()}.yaml': yaml.safe_dump([entry], sort_keys=False)}


def _metadata(row: Checkpoint, base_model: str | None) -> str:
    """The YAML at the head of the card."""
    family = [] if not of_arch(row.arch) else ['split-attention' if 'resnest' in row.arch else 'selective-kernel']
    title, dataset = _HUB_DATASETS.get(row.dataset or '', (row.dataset or '', row.tag))
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset,
            dataset_name=title,
            dataset_split='validation' if row.dataset in _HUB_DATASETS else None,
            metric_type='accuracy',
            metric_name=f'{metric} accuracy',
            metric_value=accuracy,
        )
        for metric, accuracy in (('Top-1', row.top1), ('Top-5', row.top5))
        if row.dataset and accuracy is not None
    ]
    data = ModelCardData(
        license=row.licence,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'transformers', *family],
        datasets=[dataset] if row.dataset in _HUB_DATASETS else None,
        base_model=base_model,
        model_name=row.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()


def _training_data(row: Checkpoint) -> str:
    if row.dataset in _HUB_DATASETS:
        return f'{_HUB_DATASETS[row.dataset][0]}, training split'
    return 'see the notes below' if row.bundled else NOT_ESTABLISHED


def _accuracy(row: Checkpoint) -> str:
    if row.dataset is None or row.top1 is None:
        return f'{NOT_ESTABLISHED.capitalize()}.'
    top5 = f', top-5 {row.top5:.2f} %' if row.top5 is not None else ''
    dataset, evaluation = as_markdown(row.dataset), _known(row.evaluation)
    return f'Top-1 {row.top1:.2f} %{top5} on {dataset}, reported by: {evaluation}.'


def _sources(row: Checkpoint) -> str:
    """A table of the sources and the hashes of their files."""
    if not row.sources:
        return f'{NOT_ESTABLISHED.capitalize()}.'
    lines = ['| from | format | hash of the file there |', '|---|---|---|']
    for source in row.sources:
        kind, digits = source.published_hash or (NOT_ESTABLISHED, '')
        found = f'{kind} `{digits}`' if digits else kind
        lines.append(f'| {_place(source)} | {source.format} | {found} |')
    return '\n'.join(lines)


def _place(source: Source) -> str:
    if source.kind == 'bundled':
        return 'timm_sk itself'
    if source.kind != 'hub':
        return f'<{source.location}>'
    revision = f' at `{source.revision}`' if source.revision else ''
    classifier = '' if source.has_classifier else ', without the classifier'
    return f'`{source.filename}` of `{source.location}`{revision}{classifier}'


def _conversion(row: Checkpoint, origin: Origin | None) -> str:
    if not row.sources:
        return f'Packaged by `timm-sk weights package` from a training checkpoint of `{row.arch}`.'
    if row.bundled:
        return 'The file is the one that ships with timm_sk, unchanged.'
    command = f'`timm-sk weights convert FILE --to {row.name}` converts a file above that has a classifier.'
    if origin is None:
        return command
    return f'{command} These weights were converted from <{origin.location}>, whose sha256 is `{origin.sha256}`.'


def _known(fact: object) -> str:
    if fact is None:
        return NOT_ESTABLISHED
    return as_markdown(', '.join(map(str, fact)) if isinstance(fact, tuple) else str(fact))


def _class_names(row: Checkpoint) -> str:
    names = row.label_names or ()
    more = f' and {len(names) - _MAX_CLASS_NAMES} more' if len(names) > _MAX_CLASS_NAMES else ''
    return f': {as_markdown(", ".join(names[:_MAX_CLASS_NAMES]))}{more}' if names else ''


def as_markdown(text: str) -> str:
    """A text as Markdown that shows it as it is, in a cell of a table or a line."""
    return ' '.join(re.sub(r'([\\`*\[\]|])', r'\\\1', escape(text, quote=False)).split())


def _deeper(notes: str) -> str:
    """A card's body without its metadata, with headings one level deeper; code blocks stay as they are."""
    body = re.sub(r'\A---\n.*?\n---\n', '', notes, flags=re.DOTALL)
    parts = re.split(r'(^```.*?^```$)', body, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r'^(#+ )', r'#\1', part, flags=re.MULTILINE) for part in parts[::2]]
    return f'\n{"".join(parts)}' if body else ''
