"""FPN of segmentation_models_pytorch on a selective-kernel net: `python segmenter.py IMAGE`."""

import argparse

import segmentation_models_pytorch as smp
import timm
import torch
from torch.nn.functional import cross_entropy
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import normalize, resize

import timm_sk  # noqa: F401  (registers the models)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image')
    parser.add_argument('--model', default='skresnet34', help='any model of timm with features_only: arch or arch.tag')
    parser.add_argument('--random', action='store_true', help='random weights: no download')
    parser.add_argument('--classes', type=int, default=2)
    parser.add_argument('--size', type=int, default=224, help='height and width, a multiple of 32')
    args = parser.parse_args()

    torch.manual_seed(0)
    # tu: an encoder by its name in timm's registry. Unet, DeepLabV3Plus and the others take it too
    segmenter = smp.FPN(f'tu-{args.model}', encoder_weights=None if args.random else True, classes=args.classes)
    image = resize(decode_image(args.image, mode=ImageReadMode.RGB).float() / 255, [args.size, args.size])
    target = (image.mean(0) > image.mean()).long()  # the bright pixels, in place of your masks [H, W] of class indices
    cfg = timm.get_pretrained_cfg(args.model)
    images, targets = torch.stack([normalize(image, cfg.mean, cfg.std)] * 2), torch.stack([target] * 2)
    # Pyramid and head are new: train them. Steps of training, then a mask
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = cross_entropy(segmenter(images), targets)  # of logits [B, classes, H, W]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print('losses:', ', '.join(f'{loss:.3f}' for loss in losses))
    with torch.inference_mode():
        mask = segmenter.eval()(images[:1]).argmax(1)  # [1, H, W]
    print('pixels of each class:', torch.bincount(mask.flatten(), minlength=args.classes).tolist())
