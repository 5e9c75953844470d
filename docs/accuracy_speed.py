"""Draw the chart of README.md: accuracy against speed on a CPU, from `benchmarks/engines.csv` and the checkpoints.

`python docs/accuracy_speed.py` writes `docs/accuracy_speed_light.svg` and `docs/accuracy_speed_dark.svg`.
"""

import csv
from pathlib import Path
from typing import Any

from timm_sk.checkpoints import CHECKPOINTS

HERE = Path(__file__).parent
MEASURED = HERE.parent / 'benchmarks' / 'engines.csv'
BATCH = 8
FORMS = {
    'timm eager': ('timm, PyTorch', 'o', 'tab:gray'),
    'timm openvino': ('timm, OpenVINO', 's', 'tab:olive'),
    'ours deploy': ('timm_sk.deploy, PyTorch', '^', 'tab:blue'),
    'ours auto': ("timm_sk.deploy, engine='auto'", 'D', 'tab:orange'),
}
NETS = ('skresnet34.ra_in1k', 'skresnext50_32x4d.ra_in1k', 'resnest50d.in1k')


def points() -> dict[str, list[tuple[float, float]]]:
    """Images per second and top-1 in percent of each net, by form."""
    with MEASURED.open(newline='') as file:
        rows = [row for row in csv.DictReader(file) if int(row['batch']) == BATCH]
    speeds = {(row['net'], row['form'].partition(':')[0]): 1e3 * BATCH / float(row['median_ms']) for row in rows}
    return {
        form: [(speeds[CHECKPOINTS[name].arch, form], float(CHECKPOINTS[name].top1 or 0)) for name in NETS]
        for form in FORMS
    }


def draw(colour: str) -> Any:
    """The chart as a `matplotlib.figure.Figure`, on a transparent background, with text in a colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout='constrained')
    axes = figure.add_subplot()
    found = points()
    for form, (label, marker, fill) in FORMS.items():
        axes.plot(*zip(*found[form], strict=True), marker, color=fill, markersize=9, label=label)
    for index, name in enumerate(NETS):
        speeds = [places[index][0] for places in found.values()]
        top1 = found['timm eager'][index][1]
        axes.plot([min(speeds), max(speeds)], [top1, top1], '-', color='tab:gray', linewidth=1, zorder=0)
        axes.annotate(CHECKPOINTS[name].arch, (min(speeds), top1), (0, 9), textcoords='offset points', color=colour)
    axes.set_xlabel('images per second: float32, 224x224, 8 images, two cores of a Xeon', color=colour)
    axes.set_ylabel('ImageNet top-1, percent', color=colour)
    axes.set_ylim(76, 82)
    axes.tick_params(colors=colour)
    axes.spines[:].set_color(colour)
    axes.spines[['top', 'right']].set_visible(False)
    axes.patch.set_alpha(0)
    axes.legend(loc='center right', frameon=False, labelcolor=colour)
    return figure


def main() -> None:
    """Write both files."""
    from matplotlib import rc_context

    with rc_context({'svg.hashsalt': 'accuracy_speed'}):
        for theme, colour in (('light', '#1f2328'), ('dark', '#e6edf3')):
            draw(colour).savefig(HERE / f'accuracy_speed_{theme}.svg', transparent=True, metadata={'Date': None})


if __name__ == '__main__':
    main()
