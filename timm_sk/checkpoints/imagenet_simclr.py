"""Rows of SimCLRv2's SK-ResNets: self-supervised on ImageNet, then a linear classifier or fine-tuned; or supervised."""

from .rows import IMAGENET, Checkpoint, Source

_BUCKET = 'https://storage.googleapis.com/simclr-checkpoints/simclrv2'
_EVALUATION = 'the README of google-research/simclr; the centre square of 0.875 of the short edge, not antialiased'

# By tag: folder of the bucket, training step, and what the net was trained on.
_TAGS = {
    'ft_in1k': ('finetuned_100pct', 37535, 'self-supervised, then fine-tuned on all labels'),
    'linear_in1k': ('pretrained', 250228, 'self-supervised, then a linear classifier on frozen features'),
    'sup_in1k': ('supervised', 28151, 'supervised from scratch'),
    'ft10_in1k': ('finetuned_10pct', 3754, 'self-supervised, then fine-tuned on 10 % of the labels'),
    'ft1_in1k': ('finetuned_1pct', 751, 'self-supervised, then fine-tuned on 1 % of the labels'),
}
# Top-1 in the order of the tags.
_TOP1 = {
    'r50_1x': (78.7, 74.6, 78.5, 72.1, 64.5),
    'r50_2x': (81.3, 77.7, 79.3, 77.0, 70.6),
    'r101_1x': (80.6, 76.3, 79.6, 75.8, 68.3),
    'r101_2x': (82.4, 79.0, 80.1, 78.8, 73.2),
    'r152_1x': (81.3, 77.2, 79.9, 76.5, 70.0),
    'r152_2x': (82.9, 79.4, 80.4, 79.4, 74.2),
    'r152_3x': (83.1, 79.8, 80.5, 80.1, 74.9),
}


def _simclr(net: str, tag: str, top1: float) -> Checkpoint:
    """A row of one net; the fine-tuned ones on few labels have the projection layer below the classifier."""
    folder, step, recipe = _TAGS[tag]
    depth, width = net.removeprefix('r').removesuffix('x').split('_')
    head = '_proj' if tag in ('ft10_in1k', 'ft1_in1k') else ''
    index = f'{_BUCKET}/{folder}/{net}_sk1/model.ckpt-{step}.index'
    sources = [Source(kind='url', location=index, format='tensorflow')]
    if tag == 'linear_in1k':
        repository = f'lightly-ai/simclrv2-imagenet1k-{net}_sk1'
        sources.insert(0, Source(kind='hub', location=repository, filename=f'{net}_sk1.pth', format='pytorch'))
    return Checkpoint(
        name=f'skresnet{depth}x{width}_simclr{head}.{tag}',
        family='sknet_simclr',
        sources=tuple(sources),
        licence='apache-2.0',
        origin='the authors of SimCLRv2, with TensorFlow',
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        first_conv='conv1.0',
        dataset=IMAGENET,
        top1=top1,
        evaluation=_EVALUATION,
        recipe=f'{recipe}; arXiv:2006.10029',
    )


SIMCLR_ROWS = tuple(
    _simclr(net, tag, top1)
    for tags in (('ft_in1k', 'linear_in1k', 'sup_in1k'), ('ft10_in1k', 'ft1_in1k'))
    for net, figures in _TOP1.items()
    for tag, top1 in zip(_TAGS, figures, strict=True)
    if tag in tags
)
