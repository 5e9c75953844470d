"""Weight of the larger kernel at several object scales, on the same images."""

from collections.abc import Mapping

from torch import Tensor, nn

from timm_sk import attention_weights

SCALES = (0.3, 0.5, 0.7, 0.9)
IMAGES = 500
CLEAR = 3  # standard errors above which a difference is reported


def larger_kernel_weights(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The weight [N] of each SK unit's last branch, averaged over the channels, by the paper's name of the unit."""
    return {unit.name: unit.weights[:, -1].mean(dim=1) for unit in attention_weights(model, images)}


def measure(model: nn.Module, images: Mapping[float, Tensor]) -> dict[str, dict[float, Tensor]]:
    """Weights [N] of the larger kernel by unit and scale; `images` holds the same N images at each scale."""
    by_scale = {scale: larger_kernel_weights(model, x) for scale, x in images.items()}
    return {unit: {scale: by_scale[scale][unit] for scale in images} for unit in next(iter(by_scale.values()))}


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values [N]."""
    return float(values.std() / len(values) ** 0.5)


def growth(weights: Mapping[float, Tensor]) -> tuple[float, float]:
    """Rise of the weight from the smallest to the largest scale on the same images, and its standard error."""
    difference = weights[max(weights)] - weights[min(weights)]
    return float(difference.mean()), standard_error(difference)


def table(measured: Mapping[str, Mapping[float, Tensor]]) -> str:
    """Markdown: a row per unit with mean and standard error at each scale, and the rise on the same images."""
    scales = list(next(iter(measured.values())))
    lines = [['unit', *map(str, scales), f'rise from {min(scales)} to {max(scales)}'], ['---'] * (len(scales) + 2)]
    for unit, weights in measured.items():
        rise, error = growth(weights)
        means = [f'{float(values.mean()):.3f} ± {standard_error(values):.3f}' for values in weights.values()]
        lines.append([unit, *means, f'{rise:+.3f} ± {error:.3f}'])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def verdict(measured: Mapping[str, Mapping[float, Tensor]]) -> str:
    """Units whose weight rises or falls with object size, compared with the paper."""
    rises: list[str] = []
    falls: list[str] = []
    stays: list[str] = []
    for unit, weights in measured.items():
        rise, error = growth(weights)
        (stays if abs(rise) <= CLEAR * error else rises if rise > 0 else falls).append(unit)
    said = {'rises in': rises, 'falls in': falls, f'changes by at most {CLEAR} standard errors in': stays}
    found = '; it '.join(f'{verb} {", ".join(units)}' for verb, units in said.items() if units)
    early = list(measured)[:-1]
    return (
        f'From the smallest to the largest object the weight {found}. The paper ("Selective Kernel Networks", section '
        '4.4, on ImageNet) reports that attention to the 5x5 kernel grows with the object in the low and middle stages '
        f'and that this is lost in the last one: here it grows in {len(set(early) & set(rises))} of the {len(early)} '
        f'units before the last stage, and {"also" if set(rises) - set(early) else "not"} in the last.'
    )
