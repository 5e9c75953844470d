"""Rows of LSKNet, whose makers publish neither accuracy nor preprocessing for ImageNet."""

from .rows import Checkpoint, pth_release


def _lsknet(arch: str, file: str) -> Checkpoint:
    """A backbone of the makers."""
    return Checkpoint(
        name=f'{arch}.in1k',
        family='lsknet',
        sources=(pth_release(f'https://download.openmmlab.com/mmrotate/v1.0/lsknet/backbones/{file}.pth'),),
        licence='cc-by-nc-4.0',
        origin='the authors of LSKNet',
        mean=None,
        std=None,
        interpolation=None,
        crop_pct=None,
        first_conv='patch_embed1.proj',
        classifier='head',
        recipe='300 epochs on ImageNet-1k',
    )


LSKNET_ROWS = (_lsknet('lsknet_t', 'lsk_t_backbone-2ef8a593'), _lsknet('lsknet_s', 'lsk_s_backbone-e9d2e551'))
