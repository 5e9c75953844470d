"""Rows of ResNeSts that were trained as backbones of detectors and segmenters: their files have no classifier."""

from typing import Any

from .rows import Checkpoint, Source, pth_release

_SIZES = {'resnest50d': 224, 'resnest101e': 256, 'resnest200e': 320, 'resnest269e': 416}


def _backbone(name: str, origin: str, source: Source, *, licence: str = 'apache-2.0', **fields: Any) -> Checkpoint:
    """What all rows share. No accuracy is known of a backbone alone."""
    size = _SIZES[name.partition('.')[0]]
    return Checkpoint(
        name=name,
        family='resnest',
        sources=(source,),
        licence=licence,
        origin=origin,
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        interpolation=None,
        crop_pct=None,
        first_conv='conv1.0',
        **fields,
    )


def _detectron2(arch: str, tag: str, file: str) -> Checkpoint:
    """A file of the authors; it is not known whether the digits in its name are of a hash."""
    location = f'https://s3.us-west-1.wasabisys.com/resnest/detectron/{file}.pth'
    source = Source(kind='url', location=location, format='pytorch', has_classifier=False)
    return _backbone(f'{arch}.{tag}', 'the authors of ResNeSt, with Detectron2', source, mean=None, std=None)


def _openmmlab(arch: str, digits: str) -> Checkpoint:
    """A file of OpenMMLab."""
    location = f'https://download.openmmlab.com/pretrain/third_party/{arch[:-1]}_d2-{digits}.pth'
    source = pth_release(location, has_classifier=False)
    return _backbone(f'{arch}.openmmlab', 'OpenMMLab, converted from Detectron2', source, mean=None, std=None)


def _encoding(arch: str, head: str, data: str, sha1: str) -> Checkpoint:
    """The backbone of a segmenter of PyTorch-Encoding; hash from its package."""
    file = f'{head}_{arch[:-1]}_{data}-{sha1[:8]}'
    source = Source(
        kind='url',
        location=f'https://s3.us-west-1.wasabisys.com/encoding/models/{file}.zip',
        format='pytorch in zip',
        content_sha1=sha1,
        has_classifier=False,
    )
    recipe = f'{head} on {data}, output_stride=8'
    return _backbone(f'{arch}.{data}_{head}', 'PyTorch-Encoding', source, licence='mit', recipe=recipe)


BACKBONE_ROWS = (
    _detectron2('resnest50d', 'detectron2', 'resnest50_detectron-255b5649'),
    _detectron2('resnest101e', 'detectron2', 'resnest101_detectron-486f69a8'),
    _detectron2('resnest200e', 'detectron2', 'resnest200_detectron-02644020'),
    _detectron2('resnest50d', 'coco_faster_rcnn', 'faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b'),
    _detectron2('resnest101e', 'coco_faster_rcnn', 'faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-d8f284b6'),
    _detectron2('resnest50d', 'coco_cascade_rcnn', 'faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x-e9955232'),
    _detectron2(
        'resnest101e', 'coco_cascade_rcnn', 'faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-3627ef78'
    ),
    _detectron2(
        'resnest200e', 'coco_cascade_rcnn', 'faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x-1be2a87e'
    ),
    _detectron2('resnest50d', 'coco_mask_rcnn', 'mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863'),
    _detectron2('resnest101e', 'coco_mask_rcnn', 'mask_rcnn_ResNeSt_101_FPN_syncBN_1x-528502c6'),
    _detectron2('resnest50d', 'coco_cascade_mask_rcnn', 'mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x-c58bd325'),
    _detectron2('resnest101e', 'coco_cascade_mask_rcnn', 'mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c'),
    _detectron2('resnest200e', 'coco_cascade_mask_rcnn', 'mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x'),
    _detectron2('resnest200e', 'coco_panoptic', 'panoptic_ResNeSt_200_FPN_syncBN_tricks_3x-43f8b731'),
    _openmmlab('resnest50d', '7497a55b'),
    _openmmlab('resnest101e', 'f3b931b2'),
    _openmmlab('resnest200e', 'ca88e41f'),
    _encoding('resnest50d', 'fcn', 'ade', '4aba491aaf8e4866a9c9981b210e3e3266ac1f2a'),
    _encoding('resnest50d', 'deeplab', 'ade', '2225f09d0f40b9a168d9091652194bc35ec2a5a9'),
    _encoding('resnest101e', 'deeplab', 'ade', '06ca799c8cc148fe0fafb5b6d052052935aa3cc8'),
    _encoding('resnest200e', 'deeplab', 'ade', '7b9e7d3e6f0e2c763c7d77cad14d306c0a31fe05'),
    _encoding('resnest269e', 'deeplab', 'ade', '0074dd10a6e6696f6f521653fb98224e75955496'),
    _encoding('resnest50d', 'fcn', 'pcontext', '77a2161deeb1564e8b9c41a4bb7a3f33998b00ad'),
    _encoding('resnest50d', 'deeplab', 'pcontext', '08dccbc4f4694baab631e037a374d76d8108c61f'),
    _encoding('resnest101e', 'deeplab', 'pcontext', 'faf5841853aae64bd965a7bdc2cdc6e7a2b5d898'),
    _encoding('resnest200e', 'deeplab', 'pcontext', 'fe76a26551dd5dcf2d474fd37cba99d43f6e984e'),
    _encoding('resnest269e', 'deeplab', 'pcontext', 'b661fd26c49656e01e9487cd9245babb12f37449'),
)
