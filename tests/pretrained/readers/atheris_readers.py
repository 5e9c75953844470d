"""Coverage-guided fuzzing of the readers, for as long as one likes; the suite's own fuzzing needs no atheris.

    pip install -e '.[fuzz]'
    python tests/pretrained/readers/atheris_readers.py CORPUS_FOLDER -max_total_time=600 -rss_limit_mb=2048

An empty corpus folder is filled with the valid and the hostile files of the tests.
"""

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

with atheris.instrument_imports(include=['timm_sk.pretrained.readers', 'pickle', 'zipfile']):
    from checkpoint_files import valid_files
    from hostile_files import hostile_files

    from timm_sk.errors import UnreadableCheckpointError
    from timm_sk.pretrained.readers import read_checkpoint

_LARGEST_SEED = 1 << 16


def read(content: bytes) -> None:
    """One input: tensors or our error, and nothing else."""
    FILE.write_bytes(content)
    try:
        tensors = read_checkpoint(FILE)
    except UnreadableCheckpointError:
        return
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 4 * len(content) + 4096:
        raise RuntimeError('the tensors outgrow their file')


def fill(corpus: Path) -> None:
    """Write the tests' files into a folder."""
    hostile = {name: content for name, (content, _) in hostile_files(str(corpus / 'made-by-a-pickle')).items()}
    for index, content in enumerate({**valid_files(), **hostile}.values()):
        if len(content) <= _LARGEST_SEED:
            (corpus / f'{index:03}').write_bytes(content)


if __name__ == '__main__':
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        fill(corpus)
    with tempfile.TemporaryDirectory() as folder:
        FILE = Path(folder) / 'checkpoint'
        atheris.Setup(sys.argv, read)
        atheris.Fuzz()
