"""Rows of ResNeSt for ImageNet."""

from typing import Any

from .rows import IMAGENET, Checkpoint, Source, lucid_upload, mindcv, pth_release, timm_release, untrained

_EVALUATION = 'the centre square of side s / (s + 32) of the short edge, resized to s'


def _resnest(
    name: str, *sources: Source, size: int = 224, family: str = 'resnest', licence: str = 'apache-2.0', **fields: Any
) -> Checkpoint:
    """What all rows share."""
    return Checkpoint(
        name=name,
        family=family,
        sources=sources,
        licence=licence,
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        first_conv='conv1.0',
        dataset=IMAGENET,
        **fields,
    )


def _authors_release(file: str) -> Source:
    """A file of the ResNeSt authors' release."""
    return pth_release(f'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/{file}.pth')


def _both_releases(file: str) -> tuple[Source, Source]:
    """A file of the authors, which timm has released too."""
    return _authors_release(file), timm_release(file, 'v0.1-resnest')


def _timm(name: str, *others: Source, size: int = 224, **fields: Any) -> Checkpoint:
    """A row of timm 1.0.31's own ResNeSts, with timm's evaluation; accuracies from its results-imagenet.csv."""
    origin = 'GluonCV, converted by timm' if name.endswith('gluon_in1k') else 'the authors of ResNeSt, with PyTorch'
    return _resnest(
        name,
        Source(kind='hub', location=f'timm/{name}'),
        *others,
        size=size,
        origin=origin,
        evaluation="timm's results-imagenet.csv",
        **fields,
    )


def _authors(name: str, file: str, *, top1: float) -> Checkpoint:
    """A net of the authors' ablation that timm lacks; accuracy from their ablation table, with PyTorch."""
    return _resnest(
        name,
        _authors_release(file),
        origin='the authors of ResNeSt, with PyTorch',
        top1=top1,
        evaluation=f"the authors' ablation.md; {_EVALUATION}",
    )


def _gluon(arch: str, file: str, sha1: str, *, size: int = 224, top1: float) -> Checkpoint:
    """The authors' weights for Gluon; accuracy from their tables, with Gluon."""
    release = 'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step2'
    source = Source(kind='url', location=f'{release}/{file}-{sha1[:8]}.zip', format='mxnet in zip', content_sha1=sha1)
    return _resnest(
        f'{arch}.gluon_in1k',
        source,
        size=size,
        crop_pct=size / (size + 32),
        origin='the authors of ResNeSt, with Gluon',
        top1=top1,
        evaluation=f"the authors' tables; {_EVALUATION}",
    )


# imgclsmob's names and releases.
_IMGCLSMOB = {
    'resnest14d': ('resnestabc14', 'v0.0.493'),
    'resnest18': ('resnesta18', 'v0.0.489'),
    'resnest26d': ('resnestabc26', 'v0.0.495'),
    'resnest50d': ('resnesta50', 'v0.0.531'),
    'resnest101e': ('resnesta101', 'v0.0.465'),
    'resnest152e': ('resnesta152', 'v0.0.540'),
    'resnest200e': ('resnesta200', 'v0.0.465'),
    'resnest269e': ('resnesta269', 'v0.0.465'),
}


def _imgclsmob(arch: str, error: str, sha1: str, *, top5: float, top1: float | None = None) -> Checkpoint:
    """A net of imgclsmob: with PyTorch, accuracies from its table; without top-1, with Gluon, top-5 of its package."""
    tag, container, format = ('imgclsmob', 'pth', 'pytorch') if top1 else ('gluoncv2', 'params', 'mxnet')
    net, release = _IMGCLSMOB[arch]
    file = f'{net}-{error}-{sha1[:8]}.{container}.zip'
    url = f'https://github.com/osmr/imgclsmob/releases/download/{release}/{file}'
    return _resnest(
        f'{arch}.{tag}_in1k',
        Source(kind='url', location=url, format=f'{format} in zip', content_sha1=sha1),
        size={'resnest200e': 256, 'resnest269e': 320}.get(arch, 224),
        family='resnest_upstreams' if arch in ('resnest18', 'resnest152e') else 'resnest',
        licence='mit',
        interpolation=None,
        origin='imgclsmob' if top1 else 'imgclsmob, with Gluon',
        top1=top1,
        top5=top5,
        evaluation="imgclsmob's table" if top1 else "imgclsmob's package gluoncv2",
    )


def _paddle(name: str, file: str, *, size: int = 224, top1: float | None) -> Checkpoint:
    """A net of PaddleClas; accuracy from its table."""
    url = f'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{file}_pretrained.pdparams'
    return _resnest(
        f'{name}.paddle_in1k',
        Source(kind='url', location=url, format='paddle'),
        size=size,
        family='resnest_upstreams',
        origin='PaddleClas',
        interpolation=None,
        crop_pct=size / (size + 32),
        top1=top1,
        evaluation="PaddleClas' table",
    )


RESNEST_ROWS = (
    _timm(
        'resnest14d.gluon_in1k',
        timm_release('gluon_resnest14-9c8fe254'),
        interpolation='bilinear',
        top1=75.516,
        top5=92.512,
    ),
    _timm(
        'resnest26d.gluon_in1k',
        timm_release('gluon_resnest26-50eb607c'),
        interpolation='bilinear',
        top1=78.476,
        top5=94.300,
    ),
    _timm(
        'resnest50d.in1k',
        *_both_releases('resnest50-528c19ca'),
        lucid_upload('resnest-50', 'IN1K', 'e9609ee480a096682e04c34acf0b13e2161258862060f09a1bacddd7eddf8b48'),
        interpolation='bilinear',
        top1=80.958,
        top5=95.372,
    ),
    _timm(
        'resnest101e.in1k',
        *_both_releases('resnest101-22405ba7'),
        lucid_upload('resnest-101', 'IN1K', 'b3403d554ee27612f25bd646c7202b0520f697e8150227538ae7ec5474a8479b'),
        size=256,
        interpolation='bilinear',
        top1=82.916,
        top5=96.310,
    ),
    _timm(
        'resnest200e.in1k',
        *_both_releases('resnest200-75117900'),
        lucid_upload('resnest-200', 'IN1K', '9adc2f6282549bce1b1289a42fa4ddbc722ec5759b2e8d0decf154575ec5a065'),
        size=320,
        crop_pct=0.909,
        top1=83.880,
        top5=96.880,
    ),
    _timm(
        'resnest269e.in1k',
        *_both_releases('resnest269-0cc87c48'),
        lucid_upload('resnest-269', 'IN1K', '8ddfb4eb21e96a48a27fcf9d0b66105514cbfcab37a2b5289fa349dbb9e88034'),
        size=416,
        crop_pct=0.928,
        top1=84.542,
        top5=96.988,
    ),
    _timm('resnest50d_4s2x40d.in1k', *_both_releases('resnest50_fast_4s2x40d-41d14ed0'), top1=81.146, top5=95.566),
    _timm('resnest50d_1s4x24d.in1k', *_both_releases('resnest50_fast_1s4x24d-d4a4f76f'), top1=81.024, top5=95.338),
    _authors('resnest50d_1s1x64d.in1k', 'resnest50_fast_1s1x64d-d8fbf808', top1=80.33),
    _authors('resnest50d_2s1x64d.in1k', 'resnest50_fast_2s1x64d-44938639', top1=80.53),
    _authors('resnest50d_4s1x64d.in1k', 'resnest50_fast_4s1x64d-f74f3fc3', top1=80.76),
    _authors('resnest50d_1s2x40d.in1k', 'resnest50_fast_1s2x40d-32830b84', top1=80.59),
    _authors('resnest50d_2s2x40d.in1k', 'resnest50_fast_2s2x40d-9d126481', top1=80.61),
    _gluon('resnest50d', 'resnest50', 'bcfefe1dd1dd1ef5cfed5563123c1490ea37b42e', top1=81.04),
    _gluon('resnest101e', 'resnest101', '5da943b3230f071525a98639945a6b3b3a45ac95', size=256, top1=82.81),
    _gluon('resnest200e', 'resnest200', '0c5d117df664ace220aa6fc2922c094bb079d381', size=320, top1=83.88),
    _gluon('resnest269e', 'resnest269', '11ae7f5da2bcdbad05ba7e84f9b74383e717f3e3', size=416, top1=84.53),
    _gluon('resnest50d_1s1x64d', 'resnest50_fast_1s1x64d', '5e16dbe56f1fba8e1bc2faddd91f874bfbd74193', top1=80.35),
    _gluon('resnest50d_2s1x64d', 'resnest50_fast_2s1x64d', '85eb779a5e313d74b5e5390dae02aa8082a0f469', top1=80.65),
    _gluon('resnest50d_4s1x64d', 'resnest50_fast_4s1x64d', '3f215532c6d8e07a10df116309993d4479fc3e4b', top1=80.90),
    _gluon('resnest50d_1s2x40d', 'resnest50_fast_1s2x40d', 'af3514c2ec757a3a9666a75b82f142ed47d55bee', top1=80.72),
    _gluon('resnest50d_2s2x40d', 'resnest50_fast_2s2x40d', '2db13245aa4967cf5e8617cb4911880dd41628a4', top1=80.84),
    _gluon('resnest50d_4s2x40d', 'resnest50_fast_4s2x40d', 'b24d515797832e02da4da9c8a15effd5e44cfb56', top1=81.17),
    _gluon('resnest50d_1s4x24d', 'resnest50_fast_1s4x24d', '7318153ddb5e542a20cc6c58192f3c6209cff9ed', top1=80.97),
    _imgclsmob('resnest14d', '0647', '0c3d9e34aebf0dee0dbcbb937eb54f2a7fc8f64a', top1=77.54, top5=93.53),
    _imgclsmob('resnest18', '0707', 'efca5a69587dcdff3aa5d3d7cbd621d082299e27', top1=76.32, top5=92.93),
    _imgclsmob('resnest26d', '0476', '7d97b20648e1f38454e6f5b1fe796c8eaf6e7e74', top1=80.44, top5=95.24),
    _imgclsmob('resnest50d', '0449', '8ebaf2c7ee098e60bf9426c21d49a21bc00fa8d0', top1=81.0, top5=95.51),
    _imgclsmob('resnest101e', '0403', '61e147732069b54ed4da4b342b1b8526a0e9df54', top1=82.17, top5=95.97),
    _imgclsmob('resnest152e', '0463', '42e22fedbf9e7a8b2286163e3380044189d524c0', top1=81.13, top5=95.37),
    _imgclsmob('resnest200e', '0339', '6dc300871b186950ee64fd28bb168f7fb4a036e3', top1=83.13, top5=96.61),
    _imgclsmob('resnest269e', '0338', '6a555ce85eb177299eb43747cf019a50d3a143c1', top1=83.53, top5=96.62),
    mindcv('resnest50_mindcv.mindcv_in1k', 'resnest/resnest50-f2e7fc9c', top1=80.81, top5=95.16, first_conv='conv1.0'),
    mindcv(
        'resnest50_mindcv.mindcv_v2_in1k',
        'resnest/resnest50-180_1251_v2',
        mirror='download-mindspore.osinfra.cn',
        top1=80.88,
        top5=95.32,
        first_conv='conv1.0',
    ),
    mindcv(
        'resnest101_mindcv.mindcv_in1k',
        'resnest/resnest101-7cc5c258',
        top1=82.90,
        top5=96.12,
        crop_pct=0.9,
        first_conv='conv1.0',
    ),
    untrained('resnest14_mindcv.untrained', family='resnest_upstreams', first_conv='conv1.0'),
    _resnest(
        'resnest50d.mindspore_in1k',
        Source(
            kind='url',
            location='https://download.mindspore.cn/models/r1.10/'
            'resnest50_ascend_v1100_imagenet2012_research_cv_top1acc79.52_top5acc94.45.ckpt',
            format='mindspore',
            sha256='2aaf98def70641e88a0d05214eafaa493fcb4f167aed12d3c103bea4808c881a',
        ),
        size=256,
        interpolation=None,
        crop_pct=0.8,
        origin='MindSpore Hub',
        top1=79.52,
        top5=94.45,
        evaluation='MindSpore Hub; images are resized to 320x320, whatever their aspect ratio',
    ),
    _paddle('resnest50_paddle', 'ResNeSt50', top1=81.02),
    _paddle('resnest50_1s1x64d_paddle', 'ResNeSt50_fast_1s1x64d', top1=None),  # its tables do not agree
    _paddle('resnest101_paddle', 'ResNeSt101', size=256, top1=82.79),
    _imgclsmob('resnest14d', '0634', '4b0cbe8c59e9d764027f51670096037e2f058970', top5=93.66),
    _imgclsmob('resnest18', '0689', '8f37b6927751b27a72c1b8c625de265da9b31570', top5=93.11),
    _imgclsmob('resnest26d', '0470', 'f88d49d7bd6cdf1f448afdf4bc5dadd9921798dd', top5=95.3),
    _imgclsmob('resnest50d', '0438', '6ce54a97d6e6fe8aa66755669b8f47a0790bfeb6', top5=95.62),
    _imgclsmob('resnest101e', '0399', 'ab6c6f89407d7b2cf89406f7bb62a48e86d7cabc', top5=96.01),
    _imgclsmob('resnest152e', '0451', '532c448de0011e90924b3c1e829f9525c6a5420e', top5=95.49),
    _imgclsmob('resnest200e', '0340', '3bd1f0c8d9a2862b89590c1c490a38d6d982522c', top5=96.6),
    _imgclsmob('resnest269e', '0336', '8333862a0c016432f6cd5b45f7e9de7ee6e3f319', top5=96.64),
)
