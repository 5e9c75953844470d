"""Which weights: the one table of checkpoints, as data. What is said elsewhere about a checkpoint is read from here.

A row's key is `arch.tag`. Facts that nobody has established are None.
"""

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that a checkpoint's file comes from.

    Attributes:
        kind: 'bundled' (shipped with this project, under `weights/<arch>.<tag>/`), 'hub' (a Hugging Face repository) or
            'url' (a file of the makers' release).
        location: The hub repository's id, or the URL; None for 'bundled'.
        sha256: Hex digest of this source's file, where established; a bundled file always has one.
        sha256_prefix: First digits of the digest, where its makers publish no more.
    """

    kind: str
    location: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: `arch.tag`.
        family: The module of `timm_sk.models` that builds the architecture.
        sources: Where the file comes from, best first; empty for a tag that names an untrained model.
        licence: SPDX identifier of the weights' licence.
        origin: Who made the weights.
        input_size: (channels, height, width) that the metrics were measured at.
        mean, std, interpolation, crop_pct: Preprocessing, as the makers evaluate.
        num_classes: Classes of the classifier.
        label_names: Their names in order; None where `timm.data` knows them (ImageNet).
        pool_size: (height, width) of the features that reach the classifier, or None.
        first_conv: Path of the convolution that sees the picture's channels.
        classifier: Path of the classifier.
        dataset: What the metrics were measured on.
        top1, top5: Accuracy in percent.
    """

    name: str
    family: str
    sources: tuple[Source, ...] = ()
    licence: str | None = None
    origin: str | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = 'bicubic'
    crop_pct: float = 0.875
    num_classes: int = 1000
    label_names: tuple[str, ...] | None = None
    pool_size: tuple[int, int] | None = (7, 7)
    first_conv: str = 'conv1'
    classifier: str = 'fc'
    dataset: str | None = None
    top1: float | None = None
    top5: float | None = None

    @property
    def arch(self) -> str:
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        return self.name.partition('.')[2]

    @property
    def bundled(self) -> Source | None:
        """The source that ships with the project, if there is one."""
        return next((source for source in self.sources if source.kind == 'bundled'), None)

    @property
    def hub_id(self) -> str | None:
        """The first Hugging Face repository among the sources."""
        return next((source.location for source in self.sources if source.kind == 'hub'), None)

    @property
    def url(self) -> str | None:
        """The first release file among the sources."""
        return next((source.location for source in self.sources if source.kind == 'url'), None)

    def timm_cfg(self) -> dict[str, Any]:
        """The row as fields of `timm.models.PretrainedCfg`, without the path of a bundled file."""
        return dict(
            url='' if self.hub_id else self.url or '',
            hf_hub_id=self.hub_id,
            input_size=self.input_size,
            pool_size=self.pool_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            num_classes=self.num_classes,
            label_names=self.label_names,
            first_conv=self.first_conv,
            classifier=self.classifier,
            license=self.licence,
        )


def _timm_imagenet(name: str, *, top1: float | None = None, top5: float | None = None, **fields: Any) -> Checkpoint:
    """A row of timm 1.0.31's own SK-ResNets; accuracies from its results-imagenet.csv."""
    return Checkpoint(
        name=name,
        family='sknet',
        sources=() if top1 is None else (Source(kind='hub', location=f'timm/{name}'),),
        licence='apache-2.0',
        origin='timm',
        dataset=None if top1 is None else 'ImageNet-1k validation',
        top1=top1,
        top5=top5,
        **fields,
    )


def _resnest_release(file: str) -> Source:
    """A file of the ResNeSt authors' release; it is named after the first digits of its sha256."""
    return Source(
        kind='url',
        location=f'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/{file}.pth',
        sha256_prefix=file.rpartition('-')[2],
    )


def _timm_resnest(
    name: str, *, release: str | None = None, size: int = 224, interpolation: str = 'bilinear', **fields: Any
) -> Checkpoint:
    """A row of timm 1.0.31's own ResNeSt, with timm's evaluation; accuracies from its results-imagenet.csv."""
    return Checkpoint(
        name=name,
        family='resnest',
        sources=(
            Source(kind='hub', location=f'timm/{name}'),
            *([_resnest_release(release)] if release else []),
        ),
        licence='apache-2.0',
        origin='ResNeSt authors, by timm' if release else 'GluonCV, by timm',
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        interpolation=interpolation,
        first_conv='conv1.0',
        dataset='ImageNet-1k validation',
        **fields,
    )


def _authors_resnest(name: str, release: str, *, top1: float) -> Checkpoint:
    """A net of the ResNeSt authors' ablation that timm lacks; accuracy from their ablation table, with PyTorch."""
    return Checkpoint(
        name=name,
        family='resnest',
        sources=(_resnest_release(release),),
        licence='apache-2.0',
        origin='ResNeSt authors',
        first_conv='conv1.0',
        dataset='ImageNet-1k validation',
        top1=top1,
    )


def _untrained(name: str, *, family: str = 'sknet', **fields: Any) -> Checkpoint:
    """A row without weights, which gives the architecture its preprocessing for ImageNet."""
    return Checkpoint(name=name, family=family, licence='apache-2.0', origin='timm_sk', **fields)


_ROWS = (
    _timm_imagenet('skresnet18.ra_in1k', top1=73.020, top5=91.172),
    _timm_imagenet('skresnet34.ra_in1k', top1=76.956, top5=93.320),
    _untrained('skresnet26.untrained'),
    _timm_imagenet('skresnet50.untrained'),
    _timm_imagenet('skresnet50d.untrained', first_conv='conv1.0'),
    _untrained('skresnet101.untrained'),
    _untrained('skresnext26_32x4d.untrained'),
    _timm_imagenet('skresnext50_32x4d.ra_in1k', top1=80.168, top5=94.644),
    _untrained('skresnext101_32x4d.untrained'),
    _untrained('sknet26.untrained'),
    _untrained('sknet50.untrained'),
    _untrained('sknet50_3path.untrained'),
    _untrained('sknet101.untrained'),
    Checkpoint(
        name='sknet_atto.digits',
        family='sknet',
        sources=(Source(kind='bundled', sha256='6fca5d04bbf3da55fccc6f8e9a69b4f635c29cb202ec1ec52c4f701b08c80077'),),
        licence='apache-2.0',
        origin='timm_sk, weights/train.py',
        input_size=(3, 32, 32),
        pool_size=(1, 1),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation='bilinear',
        crop_pct=1.0,
        num_classes=10,
        label_names=tuple('0123456789'),
        first_conv='conv1.0',
        dataset='360 held-out pictures of scikit-learn digits',
        top1=100.00,
    ),
    Checkpoint(
        name='sknet_atto.shapes',
        family='sknet',
        sources=(Source(kind='bundled', sha256='d0de89550d2594ea481c73d6e95ff4a04d1bc051ab3b6c3b976b185578eb523f'),),
        licence='apache-2.0',
        origin='timm_sk, weights/train.py',
        input_size=(3, 32, 32),
        pool_size=(1, 1),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation='bilinear',
        crop_pct=1.0,
        num_classes=8,
        label_names=('circle', 'crescent', 'cross', 'hourglass', 'ring', 'square', 'star', 'triangle'),
        first_conv='conv1.0',
        dataset='2,000 held-out pictures of timm_sk.shapes',
        top1=99.25,
    ),
    _untrained(
        'sknet29_16x32d.untrained', family='sknet_cifar', input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10
    ),
    _untrained('skresnet50_insight.untrained', family='sknet_upstreams'),
    _untrained('skresnet101_insight.untrained', family='sknet_upstreams'),
    _untrained('sknet50_holocron.untrained', family='sknet_upstreams', num_classes=10),
    _untrained('skresnet18_mindcv.untrained', family='sknet_upstreams'),
    _untrained('skresnet34_mindcv.untrained', family='sknet_upstreams'),
    _untrained('skresnet50_mindcv.untrained', family='sknet_upstreams'),
    _untrained('skresnext50_mindcv.untrained', family='sknet_upstreams'),
    Checkpoint(name='sk_shufflenetv2_x0_5.untrained', family='sk_mobile', first_conv='conv1.0'),
    Checkpoint(name='sk_shufflenetv2_x1_0.untrained', family='sk_mobile', first_conv='conv1.0'),
    Checkpoint(
        name='sk_mobilenetv2_100.untrained', family='sk_mobile', first_conv='conv_stem', classifier='classifier'
    ),
    _timm_resnest('resnest14d.gluon_in1k', top1=75.516, top5=92.512),
    _timm_resnest('resnest26d.gluon_in1k', top1=78.476, top5=94.300),
    _timm_resnest('resnest50d.in1k', release='resnest50-528c19ca', top1=80.958, top5=95.372),
    _timm_resnest('resnest101e.in1k', release='resnest101-22405ba7', size=256, top1=82.916, top5=96.310),
    _timm_resnest(
        'resnest200e.in1k',
        release='resnest200-75117900',
        size=320,
        interpolation='bicubic',
        crop_pct=0.909,
        top1=83.880,
        top5=96.880,
    ),
    _timm_resnest(
        'resnest269e.in1k',
        release='resnest269-0cc87c48',
        size=416,
        interpolation='bicubic',
        crop_pct=0.928,
        top1=84.542,
        top5=96.988,
    ),
    _timm_resnest(
        'resnest50d_4s2x40d.in1k',
        release='resnest50_fast_4s2x40d-41d14ed0',
        interpolation='bicubic',
        top1=81.146,
        top5=95.566,
    ),
    _timm_resnest(
        'resnest50d_1s4x24d.in1k',
        release='resnest50_fast_1s4x24d-d4a4f76f',
        interpolation='bicubic',
        top1=81.024,
        top5=95.338,
    ),
    _authors_resnest('resnest50d_1s1x64d.in1k', 'resnest50_fast_1s1x64d-d8fbf808', top1=80.33),
    _authors_resnest('resnest50d_2s1x64d.in1k', 'resnest50_fast_2s1x64d-44938639', top1=80.53),
    _authors_resnest('resnest50d_4s1x64d.in1k', 'resnest50_fast_4s1x64d-f74f3fc3', top1=80.76),
    _authors_resnest('resnest50d_1s2x40d.in1k', 'resnest50_fast_1s2x40d-32830b84', top1=80.59),
    _authors_resnest('resnest50d_2s2x40d.in1k', 'resnest50_fast_2s2x40d-9d126481', top1=80.61),
    _untrained('resnest18.untrained', family='resnest_upstreams', first_conv='conv1.0'),
    _untrained('resnest50_mindcv.untrained', family='resnest_upstreams', first_conv='conv1.0'),
    _untrained('resnest101_mindcv.untrained', family='resnest_upstreams', first_conv='conv1.0'),
    Checkpoint(name='sk_resnet_18.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnet_34.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnet_50.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnext_50_32x4d.untrained', family='sknet_lucid'),
)

CHECKPOINTS: dict[str, Checkpoint] = {row.name: row for row in _ROWS}


def of_family(family: str) -> list[Checkpoint]:
    """The rows whose architectures one module of `timm_sk.models` builds, in the table's order."""
    return [row for row in CHECKPOINTS.values() if row.family == family]


def of_arch(arch: str) -> list[Checkpoint]:
    """The rows of one architecture, the default first."""
    return [row for row in CHECKPOINTS.values() if row.arch == arch]
