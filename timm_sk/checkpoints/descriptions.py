"""The table of checkpoints as text."""

from collections.abc import Sequence

from . import Checkpoint, Source

NOT_ESTABLISHED = 'not established'
STATES = ('bundled', 'stored', 'cached', 'on the hub', 'on the web', 'needs a file')  # where a row's weights are


def _preprocessing(row: Checkpoint) -> str:
    """Size, crop and interpolation of the makers' evaluation."""
    crop = NOT_ESTABLISHED if row.crop_pct is None else f'{row.crop_pct:.4g}'
    return f'{row.input_size[-1]}, crop {crop}, {row.interpolation or NOT_ESTABLISHED}'


def _location(source: Source) -> str:
    """Where a source's file is."""
    if source.kind != 'hub':
        return source.location or 'in this package'
    at = f'@{source.revision[:8]}' if source.revision else ''
    name = '' if source.filename == 'model.safetensors' else f'/{source.filename}'
    return f'{source.location}{name}{at}'


def _published_hash(source: Source) -> str:
    """The published hash of the file, shortened."""
    if source.published_hash is None:
        return 'by the hub' if source.kind == 'hub' else 'none'
    kind, digits = source.published_hash
    return f'{kind} {digits}' if len(digits) <= 8 else f'{kind} {digits[:8]}…'


def describe(row: Checkpoint) -> dict[str, str]:
    """All fields of a checkpoint as text, by their titles."""
    normalisation = NOT_ESTABLISHED if row.mean is None else f'mean {row.mean}, standard deviation {row.std}'
    metrics = [f'top-1 {_percent(row.top1)} %' if row.top1 else '', f'top-5 {_percent(row.top5)} %' if row.top5 else '']
    measured = f'on {row.dataset}' if row.dataset else ''
    found = {
        'checkpoint': row.name,
        'made by': row.origin or NOT_ESTABLISHED,
        'licence': row.licence or 'not stated',
        'accuracy': ' '.join(filter(None, [*metrics, measured])) or NOT_ESTABLISHED,
        'evaluation': row.evaluation or NOT_ESTABLISHED,
        'preprocessing': f'{_preprocessing(row)}; {normalisation}',
        'classes': str(row.num_classes),
        'training': row.recipe or NOT_ESTABLISHED,
    }
    for number, source in enumerate(row.sources, start=1):
        size = f', {source.size:,} bytes' if source.size else ''
        notes = [f'{source.kind} {_location(source)} ({source.format}{size})']
        if source.published_hash:
            notes.append(' '.join(source.published_hash))
        if source.kind == 'hub' and not source.sha256:
            notes.append("not pinned: verified by the hub's hash only")
        elif not source.published_hash:
            notes.append('not pinned: no published hash')
        if not source.has_classifier:
            notes.append('without the classifier')
        found[f'source {number}'] = '; '.join(notes)
    return found


def markdown(rows: Sequence[Checkpoint]) -> str:
    """The checkpoints with weights as two Markdown tables: their properties, and their sources."""
    with_weights = [row for row in rows if row.sources]
    properties = [
        (
            f'`{row.name}`',
            row.origin or NOT_ESTABLISHED,
            row.licence or 'not stated',
            row.dataset or NOT_ESTABLISHED,
            _percent(row.top1),
            _percent(row.top5),
            _preprocessing(row),
        )
        for row in with_weights
    ]
    places = [
        (f'`{row.name}`', source.kind, _location(source), source.format, _published_hash(source))
        for row in with_weights
        for source in row.sources
    ]
    return '\n\n'.join(
        (
            _table(('checkpoint', 'made by', 'licence', 'measured on', 'top-1', 'top-5', 'size'), properties),
            _table(('checkpoint', 'source', 'where', 'format', 'published hash'), places),
        )
    )


def _percent(accuracy: float | None) -> str:
    return '' if accuracy is None else f'{accuracy:.2f}'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in (columns, ['---'] * len(columns), *rows))
