"""Faster R-CNN of torchvision on a ResNeSt-50 that was trained as a detector's backbone: `python detector.py IMAGE`."""

import argparse
from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import timm_sk  # noqa: F401  (registers the models)


class Pyramid(nn.Module):
    """A backbone of timm with a feature pyramid, as torchvision's detectors take it."""

    def __init__(self, backbone: nn.Module, out_channels: int = 256) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, out_channels
        self.pyramid = FeaturePyramidNetwork(
            backbone.feature_info.channels(), out_channels, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        levels = {str(level): features for level, features in enumerate(self.backbone(x))}
        return self.pyramid(OrderedDict(levels))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image')
    parser.add_argument('--model', default='resnest50d.coco_faster_rcnn', help='any backbone with strides 4 to 32')
    parser.add_argument('--random', action='store_true', help='random weights: no download')
    parser.add_argument('--classes', type=int, default=91)
    args = parser.parse_args()

    torch.manual_seed(0)
    indices = (-4, -3, -2, -1)  # strides 4, 8, 16 and 32
    backbone = timm.create_model(args.model, pretrained=not args.random, features_only=True, out_indices=indices)
    anchors = AnchorGenerator(tuple((size,) for size in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    detector = FasterRCNN(Pyramid(backbone), num_classes=args.classes, rpn_anchor_generator=anchors)
    # Pyramid and heads are new: train them. A step of training, then detections
    image = decode_image(args.image, mode=ImageReadMode.RGB).float() / 255
    target = dict(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    losses = detector([image, image], [target, target])
    sum(losses.values()).backward()
    print('losses:', ', '.join(f'{name} {float(loss):.3f}' for name, loss in losses.items()))
    with torch.inference_mode():
        print('boxes:', len(detector.eval()([image])[0]['boxes']))
