"""Layouts of selective-kernel nets."""

from .layout import MINDCV_NORM, NORM, WEIGHT, WEIGHT_AND_BIAS, Layout, Leaf, norm_leaves, rename_modules, same_names

_BLOB = (Leaf(':0', '.weight'),)
_CAFFE_NORM = norm_leaves('/bn:0', '/bn:1', '/bn:2', '/bn:3', shape=(1, -1, 1, 1))
_TWO_LAYERS = tuple(Leaf(f'.{{part}}{name}', name, parts=2) for name in ('.weight', '.bias'))

# Our modules of a bottleneck, in the order in which some layouts below list theirs.
_BOTTLENECK = {
    'conv1.conv': WEIGHT,
    'conv1.bn': NORM,
    'conv2.paths.{path}.conv': WEIGHT,
    'conv2.paths.{path}.bn': NORM,
    'conv2.attn.fc_reduce': WEIGHT,
    'conv2.attn.bn': NORM,
    'conv2.attn.fc_select': WEIGHT,
    'conv3.conv': WEIGHT,
    'conv3.bn': NORM,
    'downsample.0': WEIGHT,
    'downsample.1': NORM,
}

SKNET_LAYOUTS = (
    # The authors' nets, implus/SKNet, models/sknet50.prototxt. Keys are '<layer>:<blob>'. A CuDNNBatchNorm layer has
    # four blobs of shape (1, C, 1, 1): scale, bias, mean, variance.
    Layout(
        'Caffe SKNet',
        signature=('conv2_1/3x3g32:0',),
        archs='sknet.*',
        net=[
            ('conv1/7x7_s2', 'conv1', _BLOB),
            ('conv1/7x7_s2', 'bn1', _CAFFE_NORM),
            ('classifier', 'fc', (*_BLOB, Leaf(':1', '.bias'))),
        ],
        prefix='conv{stage+1}_{block+1}/',
        modules=[
            ('1x1_reduce', 'conv1.conv', _BLOB),
            ('1x1_reduce', 'conv1.bn', _CAFFE_NORM),
            ('3x3g32', 'conv2.paths.0.conv', _BLOB),
            ('3x3g32', 'conv2.paths.0.bn', _CAFFE_NORM),
            ('3x3g32d2', 'conv2.paths.1.conv', _BLOB),
            ('3x3g32d2', 'conv2.paths.1.bn', _CAFFE_NORM),
            ('B_fc1', 'conv2.attn.fc_reduce', _BLOB),
            ('B_fc1', 'conv2.attn.bn', _CAFFE_NORM),
            ('B_fc2', 'conv2.attn.fc_select', _BLOB),
            ('1x1_increase', 'conv3.conv', _BLOB),
            ('1x1_increase', 'conv3.bn', _CAFFE_NORM),
            ('1x1_proj', 'downsample.0', _BLOB),
            ('1x1_proj', 'downsample.1', _CAFFE_NORM),
        ],
    ),
    # implus/PytorchInsight, classification/models/imagenet/resnet_sk.py
    Layout(
        'PytorchInsight SK-ResNet',
        signature=('layer1.0.conv2g.weight',),
        net=[*same_names(WEIGHT, 'conv1'), *same_names(NORM, 'bn1'), *same_names(WEIGHT_AND_BIAS, 'fc')],
        modules=[
            ('conv1', 'conv1.conv', WEIGHT),
            ('bn1', 'conv1.bn', NORM),
            ('conv2', 'conv2.paths.0.conv', WEIGHT),
            ('bn2', 'conv2.paths.0.bn', NORM),
            ('conv2g', 'conv2.paths.1.conv', WEIGHT),
            ('bn2g', 'conv2.paths.1.bn', NORM),
            ('conv_fc1', 'conv2.attn.fc_reduce', WEIGHT),
            ('bn_fc1', 'conv2.attn.bn', NORM),
            ('conv_fc2', 'conv2.attn.fc_select', WEIGHT),
            ('conv3', 'conv3.conv', WEIGHT),
            ('bn3', 'conv3.bn', NORM),
            *same_names(WEIGHT, 'downsample.0'),
            *same_names(NORM, 'downsample.1'),
        ],
    ),
    # frgfm/Holocron, holocron/models/classification/sknet.py; the same at v0.1.3 and v0.2.1
    Layout(
        'Holocron SKNet',
        signature=('features.4.0.conv.3.sa.1.weight',),
        net=[('features.0', 'conv1', WEIGHT), ('features.1', 'bn1', NORM), ('head', 'fc', WEIGHT_AND_BIAS)],
        prefix='features.{stage+3}.{block}.',
        modules=rename_modules(
            _BOTTLENECK | {'conv2.attn.fc_select': WEIGHT_AND_BIAS},
            (
                *('conv.0', 'conv.1', 'conv.3.path_convs.{path}.0', 'conv.3.path_convs.{path}.1'),
                *('conv.3.sa.1', 'conv.3.sa.2', 'conv.3.sa.4', 'conv.4', 'conv.5', 'downsample.0', 'downsample.1'),
            ),
        ),
    ),
    # syt2/SKNet, models/SKNet.py; the attention has one last layer per branch
    Layout(
        'syt2 SKNet',
        signature=('stage_1.0.conv2.convs.0.0.weight',),
        net=[('basic_conv.0', 'conv1', WEIGHT), ('basic_conv.1', 'bn1', NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
        prefix='stage_{stage}.{block}.',
        modules=rename_modules(
            _BOTTLENECK | {'conv2.attn.fc_select': _TWO_LAYERS},
            (
                *('conv1.0', 'conv1.1', 'conv2.convs.{path}.0', 'conv2.convs.{path}.1'),
                *('conv2.fc.0', 'conv2.fc.1', 'conv2.fcs', 'conv3.0', 'conv3.1', 'shortcut.0', 'shortcut.1'),
            ),
        ),
    ),
    # osmr/imgclsmob, pytorchcv/models/sknet.py, whose nets are timm's
    Layout(
        'pytorchcv SKNet',
        signature=('features.stage1.unit1.body.conv2.branches.branch2.conv.weight',),
        net=[
            ('features.init_block.conv.conv', 'conv1', WEIGHT),
            ('features.init_block.conv.bn', 'bn1', NORM),
            ('output', 'fc', WEIGHT_AND_BIAS),
        ],
        prefix='features.stage{stage}.unit{block+1}.',
        modules=rename_modules(
            _BOTTLENECK,
            (
                *('body.conv1.conv', 'body.conv1.bn'),
                *('body.conv2.branches.branch{path+2}.conv', 'body.conv2.branches.branch{path+2}.bn'),
                *('body.conv2.fc1.conv', 'body.conv2.fc1.bn', 'body.conv2.fc2', 'body.conv3.conv', 'body.conv3.bn'),
                *('identity_conv.conv', 'identity_conv.bn'),
            ),
        ),
    ),
    # mindspore-lab/mindcv, mindcv/models/sknet.py; the unit is `conv1` in basic blocks and `conv2` in bottlenecks
    Layout(
        'MindCV SK-ResNet',
        signature=('layer2.0.down_sample.0.weight',),
        archs='.*_mindcv',
        net=[('conv1', 'conv1', WEIGHT), ('bn1', 'bn1', MINDCV_NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
        modules=[
            ('conv{conv}.0', 'conv{conv}.conv', WEIGHT),
            ('conv{conv}.1', 'conv{conv}.bn', MINDCV_NORM),
            ('conv{conv}.paths.{path}.features.0', 'conv{conv}.paths.{path}.conv', WEIGHT),
            ('conv{conv}.paths.{path}.features.1', 'conv{conv}.paths.{path}.bn', MINDCV_NORM),
            *same_names(WEIGHT, 'conv{conv}.attn.fc_reduce', 'conv{conv}.attn.fc_select'),
            *same_names(MINDCV_NORM, 'conv{conv}.attn.bn'),
            ('down_sample.0', 'downsample.0', WEIGHT),
            ('down_sample.1', 'downsample.1', MINDCV_NORM),
        ],
    ),
    # Version 3 of the Lucid library, lucid-dl on the Hugging Face Hub: timm's nets, stem and classifier renamed
    Layout(
        'Lucid 3 SK-ResNet',
        signature=('classifier.weight', 'layer1.0.conv1.paths.0.conv.weight'),
        net=[('stem.0', 'conv1', WEIGHT), ('stem.1', 'bn1', NORM), ('classifier', 'fc', WEIGHT_AND_BIAS)],
        modules=[
            *same_names(WEIGHT, 'conv{conv}.conv', 'conv{conv}.paths.{path}.conv', 'downsample.0'),
            *same_names(NORM, 'conv{conv}.bn', 'conv{conv}.paths.{path}.bn', 'downsample.1', 'conv{conv}.attn.bn'),
            *same_names(WEIGHT, 'conv{conv}.attn.fc_reduce', 'conv{conv}.attn.fc_select'),
        ],
    ),
)
