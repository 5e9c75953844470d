"""Train the smallest lightweight net with SK units, with squeeze-and-excitation and plain, alike, and compare.

    python weights/compare_lightweight.py

Nine runs (three units, three seeds) on images of `timm_sk.shapes`, evaluated on its held-out set; writes
`benchmarks/lightweight_shapes.csv`, which `docs/lightweight.py` puts into words.
"""

import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from recipe import Recipe
from shapes import NewImages, preprocess
from train import count_wrong, train

from timm_sk.csv_files import write_csv
from timm_sk.data.shapes import CLASS_NAMES, TEST_COUNT, TEST_SEED, draw

RESULTS = Path(__file__).resolve().parent.parent / 'benchmarks' / 'lightweight_shapes.csv'
NAME = 'sk_shufflenetv2_x0_5'
UNITS, SEEDS = ('plain', 'se', 'sk'), (0, 1, 2)
RECIPE = Recipe(epochs=6, warmup_epochs=1, batch_size=32, lr=1e-2)  # chosen with the plain net, on other images
STEPS = 200  # of an epoch, whose images are new ones for each seed


def run(unit: str, seed: int) -> dict[str, object]:
    """Train one net on one core and judge it once."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = timm.create_model(NAME, unit=unit, num_classes=len(CLASS_NAMES))
    train(model, NewImages(STEPS, RECIPE.batch_size, first_seed=1000 * seed), RECIPE)
    seconds = time.perf_counter() - start
    pixels, labels = draw(TEST_COUNT, seed=TEST_SEED)
    wrong = count_wrong(model, preprocess(pixels), torch.from_numpy(labels))
    return dict(
        model=NAME,
        unit=unit,
        seed=seed,
        top1=round(100 * (1 - wrong / TEST_COUNT), 2),
        seconds=round(seconds),
        images=RECIPE.epochs * STEPS * RECIPE.batch_size,
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        machine=platform.machine(),
    )


def main() -> None:
    """Run all, two at a time."""
    jobs = [(unit, seed) for seed in SEEDS for unit in UNITS]
    with ProcessPoolExecutor(max_workers=2) as pool:
        rows = list(pool.map(run, *zip(*jobs, strict=True)))
    write_csv(RESULTS, [rows[0], *(row.values() for row in rows)])
    for row in rows:
        print(row)


if __name__ == '__main__':
    main()
