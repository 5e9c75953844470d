"""Rows of the nets for small images."""

from typing import Any

from .rows import Checkpoint, Source, untrained


def _atto(
    name: str, sha256: str, size: int, *, label_names: tuple[str, ...], trained_on: str, dataset: str, top1: float
) -> Checkpoint:
    """A row of the bundled net for images of 32x32."""
    return Checkpoint(
        name=name,
        family='sknet',
        sources=(Source(kind='bundled', sha256=sha256, size=size),),
        licence='apache-2.0',
        origin='timm_sk, weights/train.py',
        input_size=(3, 32, 32),
        pool_size=(1, 1),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation='bilinear',
        crop_pct=1.0,
        num_classes=len(label_names),
        label_names=label_names,
        first_conv='conv1.0',
        trained_on=trained_on,
        dataset=dataset,
        top1=top1,
        evaluation='timm_sk, weights/train.py',
        recipe=f'python weights/train.py {name}',
    )


_CIFAR: dict[str, Any] = dict(
    family='sknet_cifar',
    input_size=(3, 32, 32),
    pool_size=(8, 8),
    interpolation='bilinear',
    crop_pct=1.0,
    num_classes=10,
)
CIFAR10_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')

SMALL_ROWS = (
    _atto(
        'sknet_atto.digits',
        '6fca5d04bbf3da55fccc6f8e9a69b4f635c29cb202ec1ec52c4f701b08c80077',
        837896,
        label_names=tuple('0123456789'),
        trained_on='handwritten digits (scikit-learn)',
        dataset='360 held-out images of scikit-learn digits',
        top1=100.00,
    ),
    _atto(
        'sknet_atto.shapes',
        'd0de89550d2594ea481c73d6e95ff4a04d1bc051ab3b6c3b976b185578eb523f',
        836096,
        label_names=('circle', 'crescent', 'cross', 'hourglass', 'ring', 'square', 'star', 'triangle'),
        trained_on='synthetic shapes (timm_sk.shapes)',
        dataset='2,000 held-out images of timm_sk.shapes',
        top1=99.25,
    ),
    untrained('sknet29_16x32d.untrained', **_CIFAR),
    Checkpoint(
        name='sknet17_1x32d.cifar10',
        sources=(
            Source(
                kind='bundled', sha256='f89d92131c61b95225d9ed616e98e51ae582f033951c02b1fa23ef6b58da72f1', size=2036876
            ),
        ),
        licence='apache-2.0',
        origin='timm_sk, weights/cifar10.py',
        label_names=CIFAR10_NAMES,
        trained_on='photographs of CIFAR-10, as JPEG copies',
        dataset='10,000 test images of CIFAR-10, as JPEG copies',
        top1=89.88,
        evaluation='timm_sk, weights/cifar10.py',
        recipe='timm-sk finetune cifar10/train.tar --config cifar10, then refined as docs/cifar.md says',
        **_CIFAR,
    ),
)
