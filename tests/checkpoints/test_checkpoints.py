"""The table has what the makers of every public checkpoint published, and the document has the table."""

import json
import re
from pathlib import Path

import pytest
import timm
import timm.models
from subprocesses import ROOT

from timm_sk.checkpoints import CHECKPOINTS, Checkpoint, Source
from timm_sk.checkpoints.descriptions import markdown
from timm_sk.registry import architectures

PUBLIC = json.loads((Path(__file__).parents[1] / 'data' / 'public_checkpoints.json').read_text())
WITH_WEIGHTS = [row for row in CHECKPOINTS.values() if row.sources]

# What a checkpoint of another implementation is called here, by its maker.
TAGS = {
    'timm': {'ra_in1k', 'gluon_in1k', 'in1k'},
    'zhanghang1989/ResNeSt': {'in1k'},
    'zhanghang1989/ResNeSt (gluon)': {'gluon_in1k'},
    'osmr/imgclsmob (pytorchcv)': {'imgclsmob_in1k'},
    'mindspore-lab/mindcv': {'mindcv_in1k', 'mindcv_910v2_in1k', 'mindcv_v2_in1k'},
    'ChanLumerico/lucid 3.x': {'ra_in1k', 'in1k'},
    'segmentation_models.pytorch': {'ra_in1k'},
    'implus/PytorchInsight': {'insight_in1k'},
    'implus/SKNet': {'implus_in1k'},
    'frgfm/Holocron': {'imagenette', 'v013_imagenette'},
    'google-research/simclr (SimCLRv2)': {'ft_in1k', 'linear_in1k', 'sup_in1k', 'ft10_in1k', 'ft1_in1k'},
    'osmr/imgclsmob (gluoncv2)': {'gluoncv2_in1k'},
    'PaddleClas': {'paddle_in1k'},
    'MindSpore Hub': {'mindspore_in1k'},
    'syt2/SKNet': {'syt2_in1k'},
    'zcablii/LSKNet': {'in1k'},
    'zhanghang1989/ResNeSt (detectron2)': {
        *('detectron2', 'coco_faster_rcnn', 'coco_cascade_rcnn', 'coco_mask_rcnn', 'coco_cascade_mask_rcnn'),
        'coco_panoptic',
    },
    'OpenMMLab': {'openmmlab'},
    'PyTorch-Encoding': {'ade_fcn', 'ade_deeplab', 'pcontext_fcn', 'pcontext_deeplab'},
}
WITHOUT_CLASSIFIER = {
    *('segmentation_models.pytorch', 'zhanghang1989/ResNeSt (detectron2)', 'OpenMMLab', 'PyTorch-Encoding')
}
RETRAINED = ('timm', 'ChanLumerico/lucid 3.x', 'segmentation_models.pytorch')  # whose metrics are timm's


def places(public: dict) -> set[str]:
    """Where a public file lies, as the table would name it."""
    found = {public[key] for key in ('hf_repo', 'url') if key in public}
    if public.get('url', '').startswith('https://huggingface.co/'):
        owner, name = public['url'].split('/')[3:5]
        return {f'{owner}/{name}'}
    return found


def sources_of(public: dict) -> list[tuple[Checkpoint, Source]]:
    return [(row, source) for row in WITH_WEIGHTS for source in row.sources if source.location in places(public)]


def test_number_of_public_checkpoints():
    assert len(PUBLIC) == 140
    assert {public['source'] for public in PUBLIC} == set(TAGS)


@pytest.mark.parametrize('public', PUBLIC, ids=lambda public: f'{public["source"]}-{public["name"]}')
def test_public_checkpoint(public):
    found = sources_of(public)
    assert {source.location for _, source in found} == places(public)
    (row,) = {row.name: row for row, _ in found}.values()
    assert row.tag in TAGS[public['source']]
    if public['source'].startswith('zhanghang1989') or public['source'] in ('OpenMMLab', 'PyTorch-Encoding'):
        name = re.search(r'resnest_?(\d+)(?:_fast(_\w+))?', public['name'], re.IGNORECASE)
        stem = 'd' if name[1] == '50' else 'e'  # timm's letter for its width
        assert row.arch == f'resnest{name[1]}{stem}{name[2] or ""}'
    for _, source in found:
        if source.kind != 'hub' or 'sha256' in public:
            assert source.sha256 == public.get('sha256')
            assert source.sha256_prefix == (None if source.sha256 else public.get('sha256_prefix'))
            assert source.content_sha1 == public.get('sha1', public.get('params_sha1'))
            assert source.size == public.get('size')
        assert source.revision == public.get('revision')
        assert source.has_classifier == (public['source'] not in WITHOUT_CLASSIFIER)
    if public['source'] in RETRAINED and public['source'] != 'timm':
        return
    stated = public.get('license', '').partition(' ')[0]
    assert row.licence == (None if stated == 'none' else stated)
    if public['source'] == 'zhanghang1989/ResNeSt' and row.evaluation.startswith('timm'):
        return  # the same weights, in timm's evaluation
    assert row.top1 == public.get('top1')
    top5 = 100 - public['top5_err'] if 'top5_err' in public else public.get('top5')
    assert row.top5 == (None if top5 is None else pytest.approx(top5))
    if 'img_size' in public:
        assert row.input_size == (3, public['img_size'], public['img_size'])
    if 'crop_pct' in public:
        assert row.crop_pct == pytest.approx(public['crop_pct'], abs=1e-4)
    assert row.interpolation == (public['interpolation'].split()[0] if 'interpolation' in public else None)
    norm = public.get('norm')
    assert (row.mean, row.std) == ((*map(tuple, norm.values()),) if isinstance(norm, dict) else (None, None))


def test_sources_are_unique():
    places = [(source.location, source.filename) for row in WITH_WEIGHTS for source in row.sources if source.location]
    assert len(places) == len(set(places))


def test_hub_owners():
    owners = {
        source.location.partition('/')[0] for row in WITH_WEIGHTS for source in row.sources if source.kind == 'hub'
    }
    assert owners == {'timm', 'smp-hub', 'lucid-dl', 'lightly-ai'}


@pytest.mark.parametrize('row', CHECKPOINTS.values(), ids=lambda row: row.name)
def test_timm_cfg(row):
    cfg = timm.models.get_arch_pretrained_cfgs(row.arch)[row.name]
    for field in ('input_size', 'num_classes', 'first_conv', 'classifier', 'pool_size', 'label_names'):
        assert getattr(cfg, field) == getattr(row, field), field
    for field in ('mean', 'std', 'interpolation', 'crop_pct'):
        if getattr(row, field) is not None:
            assert getattr(cfg, field) == getattr(row, field), field
    assert cfg.license == row.licence
    assert cfg.hf_hub_id == row.hub_id
    urls = [source.location for source in row.sources if source.kind == 'url']
    assert cfg.url == ('' if row.hub_id else ''.join(urls[:1]))
    assert row.arch in architectures()
    kinds = {source.kind for source in row.sources}
    assert bool(cfg.has_weights) == bool(kinds & {'bundled', 'hub', 'url'})


def test_generated_document():
    assert markdown(list(CHECKPOINTS.values())) in (ROOT / 'docs' / 'checkpoints.md').read_text()
