"""Write timm_sk/models/costs.csv: parameters and multiply-adds of every architecture. Counting takes half a minute.

After adding an architecture, run `python docs/costs.py`.
"""

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.csv_files import write_csv
from timm_sk.models.costs import FILE, count, shape

COLUMNS = ('arch', 'num_classes', 'input_size', 'params', 'macs')


def main() -> None:
    """Count every architecture."""
    rows = [
        [arch, num_classes, 'x'.join(map(str, input_size)), *count(arch, num_classes, input_size)]
        for arch, num_classes, input_size in dict.fromkeys(map(shape, CHECKPOINTS.values()))
    ]
    write_csv(FILE, [COLUMNS, *rows])


if __name__ == '__main__':
    main()
