"""Write timm_sk/models/costs.csv: parameters and multiply-adds of every architecture. Counting takes half a minute.

After adding an architecture, run `python docs/costs.py`.
"""

import csv

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.models.costs import FILE, count, shape

COLUMNS = ('arch', 'num_classes', 'input_size', 'params', 'macs')


def main() -> None:
    """Count every architecture."""
    with FILE.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(COLUMNS)
        for arch, num_classes, input_size in dict.fromkeys(map(shape, CHECKPOINTS.values())):
            size = 'x'.join(map(str, input_size))
            writer.writerow([arch, num_classes, size, *count(arch, num_classes, input_size)])


if __name__ == '__main__':
    main()
