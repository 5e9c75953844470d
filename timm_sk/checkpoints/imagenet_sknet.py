"""Rows of the selective-kernel networks for ImageNet."""

from typing import Any

from .rows import IMAGENET, Checkpoint, Source, lucid_upload, mindcv, timm_release, untrained


def _timm(name: str, release: str, *others: Source, top1: float, top5: float) -> Checkpoint:
    """A row of timm 1.0.31's own SK-ResNets; accuracies from its results-imagenet.csv."""
    return Checkpoint(
        name=name,
        family='sknet',
        sources=(Source(kind='hub', location=f'timm/{name}'), timm_release(release), *others),
        licence='apache-2.0',
        origin='timm',
        dataset=IMAGENET,
        top1=top1,
        top5=top5,
        evaluation="timm's results-imagenet.csv",
    )


def _smp(repository: str, revision: str) -> Source:
    """Timm's weights as segmentation_models.pytorch uploads them for its encoders."""
    return Source(kind='hub', location=f'smp-hub/{repository}', revision=revision, has_classifier=False)


def _from_drive(file: str, *, format: str, **fields: Any) -> Checkpoint:
    """A row whose file is on a drive, and whose makers state no licence."""
    page = f'https://drive.google.com/file/d/{file}/view'
    return Checkpoint(sources=(Source(kind='manual', location=page, format=format),), dataset=IMAGENET, **fields)


def _implus(arch: str, file: str, *, top1: float, top1_at_320: float) -> Checkpoint:
    """A row of the authors' own nets; accuracies from their README."""
    return _from_drive(
        file,
        name=f'{arch}.implus_in1k',
        family='sknet',
        format='caffe',
        origin='the authors of SKNet, with Caffe',
        mean=None,
        std=None,
        interpolation=None,
        top1=top1,
        evaluation=f"the authors' README; {top1_at_320:.2f} at 320x320. The input's normalisation is not published",
    )


def _insight(arch: str, file: str, *, top1: float, top5: float) -> Checkpoint:
    """A row of PytorchInsight; accuracies from its README."""
    return _from_drive(
        file,
        name=f'{arch}.insight_in1k',
        family='sknet_upstreams',
        format='pytorch',
        origin='PytorchInsight',
        interpolation='bilinear',
        top1=top1,
        top5=top5,
        evaluation="PytorchInsight's README",
    )


def _holocron(
    name: str, file: str, version: str, *, licence: str, top1: float, top5: float | None = None, **hashes: Any
) -> Checkpoint:
    """A row of Holocron, trained on Imagenette: ten of ImageNet's classes."""
    url = f'https://github.com/frgfm/Holocron/releases/download/{version}/{file}.pth'
    return Checkpoint(
        name=name,
        family='sknet_upstreams',
        sources=(Source(kind='url', location=url, format='pytorch', **hashes),),
        licence=licence,
        origin='Holocron',
        interpolation='bilinear',
        crop_pct=224 / 232 if version == 'v0.2.1' else None,
        num_classes=10,
        label_names=_IMAGENETTE,
        dataset='Imagenette validation',
        top1=top1,
        top5=top5,
        evaluation="Holocron's table",
    )


_IMAGENETTE = (
    'tench',
    'English springer',
    'cassette player',
    'chain saw',
    'church',
    'French horn',
    'garbage truck',
    'gas pump',
    'golf ball',
    'parachute',
)

SKNET_ROWS = (
    _timm(
        'skresnet18.ra_in1k',
        'skresnet18_ra-4eec2804',
        lucid_upload('sk-resnet-18', 'RA_IN1K', 'eee529647dfe98f5397efd0764d17ab7319e730f1f192dd73dd9f4a7763a85dd'),
        _smp('timm-skresnet18.imagenet', '6c97652bb744d89177b68274d2fda3923a7d1f95'),
        top1=73.020,
        top5=91.172,
    ),
    _timm(
        'skresnet34.ra_in1k',
        'skresnet34_ra-bdc0ccde',
        lucid_upload('sk-resnet-34', 'RA_IN1K', 'd36f565612c3929a4a64d5449c30b3d8f3e2cef9ec4fd4765229883f19edc3eb'),
        _smp('timm-skresnet34.imagenet', '2367796924a8182cc835ef6b5dc303917f923f99'),
        top1=76.956,
        top5=93.320,
    ),
    untrained('skresnet26.untrained'),
    Checkpoint(name='skresnet50.untrained', family='sknet', licence='apache-2.0', origin='timm'),
    Checkpoint(name='skresnet50d.untrained', family='sknet', licence='apache-2.0', origin='timm', first_conv='conv1.0'),
    untrained('skresnet101.untrained'),
    untrained('skresnext26_32x4d.untrained'),
    _timm(
        'skresnext50_32x4d.ra_in1k',
        'skresnext50_ra-f40e40bf',
        _smp('timm-skresnext50_32x4d.imagenet', '50207e407cc4c6ea9e6872963db6844ca7b7b9de'),
        top1=80.168,
        top5=94.644,
    ),
    untrained('skresnext101_32x4d.untrained'),
    untrained('sknet26.untrained'),
    _implus('sknet50', '1EKanqFkqoU3L6vgSLW3GjPciesZ2rrUH', top1=79.21, top1_at_320=80.68),
    untrained('sknet50_3path.untrained'),
    _implus('sknet101', '1NEYIYeSXQeinLGU5GH2hf8T6MJytzt0U', top1=79.81, top1_at_320=81.60),
    _insight('skresnet50_insight', '1DGYWPeKc7dyJ9i-zPJcPPa2engExPOnJ', top1=77.538, top5=93.700),
    _insight('skresnet101_insight', '1WB7HXx-cvUIxFRe-M61XZIzUN0a3nsbF', top1=78.792, top5=94.268),
    _holocron(
        'sknet50_holocron.imagenette',
        'sknet50_224-e2349031',
        'v0.2.1',
        licence='apache-2.0',
        top1=94.37,
        top5=99.54,
        sha256='e2349031c838a4661cd729dbc7825605c9e0c966bd89bbcc9b39f0e324894d1f',
        size=141253623,
    ),
    _holocron(
        'sknet50_holocron.v013_imagenette',
        'sknet50_224-5d2160f2',
        'v0.1.3',
        licence='mit',
        top1=90.42,
        sha256_prefix='5d2160f2',
    ),
    untrained('sknet101_holocron.untrained', family='sknet_upstreams', num_classes=10),
    _from_drive(
        '1h6NIwSemMrFDk4DWT7-Zdm9kolHljyZU',
        name='sknet50_syt2.syt2_in1k',
        family='sknet_upstreams',
        format='pytorch',
        origin='syt2',
        top1=78.74,
        evaluation="syt2's README",
    ),
    mindcv('skresnet18_mindcv.mindcv_in1k', 'sknet/skresnet18-868228e5', top1=73.09, top5=91.20),
    mindcv(
        'skresnet18_mindcv.mindcv_910v2_in1k',
        'sknet/skresnet18-9d8b1afc-910v2',
        mirror='download-mindspore.osinfra.cn',
        top1=72.85,
        top5=90.83,
    ),
    mindcv(
        'skresnet34_mindcv.mindcv_in1k', 'sknet/skresnet34-d668b629', top1=76.71, top5=93.10, interpolation='bilinear'
    ),
    untrained('skresnet50_mindcv.untrained', family='sknet_upstreams'),
    mindcv('skresnext50_mindcv.mindcv_in1k', 'sknet/skresnext50_32x4d-395413a2', top1=79.08, top5=94.60),
    Checkpoint(name='sk_resnet_18.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnet_34.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnet_50.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_resnext_50_32x4d.untrained', family='sknet_lucid'),
    Checkpoint(name='sk_shufflenetv2_x0_5.untrained', family='sk_mobile', first_conv='conv1.0'),
    Checkpoint(name='sk_shufflenetv2_x1_0.untrained', family='sk_mobile', first_conv='conv1.0'),
    Checkpoint(
        name='sk_mobilenetv2_100.untrained', family='sk_mobile', first_conv='conv_stem', classifier='classifier'
    ),
)
