"""Untrusted images are read in child processes, which end at their limits."""

import os
import struct
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from demo.sample_images import RING, png
from PIL import Image

from timm_sk.data.images import read_image
from timm_sk.data.limited_reading import Limits, read_image_limited
from timm_sk.errors import UnreadableImageError

LIMITS = Limits(pixels=50_000_000, aspect=16, side=64, megabytes=500, seconds=60, formats=('PNG', 'ICO', 'JPEG'))


def test_same_pixels(tmp_path):
    found = read_image_limited(RING, LIMITS)
    assert np.array_equal(np.asarray(found), np.asarray(read_image(RING)))
    Image.new('RGB', (400, 200), 'red').save(tmp_path / 'wide.png')
    assert read_image_limited(tmp_path / 'wide.png', LIMITS).size == (64, 32)


def icon(content):
    """An ICO of 16 x 16 pixels, by its header, with a PNG in it."""
    head = struct.pack('<HHHBBBBHHII', 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22)
    return head + content


@pytest.mark.all_cases
@pytest.mark.parametrize(
    ('content', 'limits', 'message'),
    [
        (icon(png(13300, 13300)), {}, 'has 13300 x 13300 pixels: 50 million at most. Reduce it first.'),
        (png(7000, 7000), dict(megabytes=100), 'takes more than 100 MB or 60 seconds to decode. Reduce it first.'),
        (RING.read_bytes(), dict(formats=('JPEG',)), ': not an image that can be read.'),
        (None, dict(seconds=0.5), 'takes more than 500 MB or 0.5 seconds to decode. Reduce it first.'),
    ],
)
def test_limits(tmp_path, content, limits, message):
    path = tmp_path / 'upload'
    if content is None:
        os.mkfifo(path)  # into which nobody writes
    else:
        path.write_bytes(content)
    read_image_limited(RING, LIMITS)  # so that the server of the processes runs
    start = time.monotonic()
    with pytest.raises(UnreadableImageError) as error:
        read_image_limited(path, replace(LIMITS, **limits))
    assert str(error.value) in (f'{path} {message}', f'{path}{message}')
    assert time.monotonic() - start < 30


@pytest.mark.skipif(sys.platform != 'linux', reason='limits of memory')
def test_warning_if_memory_has_no_limit(tmp_path):
    """Once for all images, where a lower limit that is there already refuses ours."""
    (tmp_path / 'read.py').write_text(f"""
import resource, sys
from pathlib import Path
from timm_sk.data.limited_reading import Limits, read_image_limited
if __name__ == '__main__':
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
    for _ in range(2):
        print(read_image_limited(Path(sys.argv[1]), {replace(LIMITS, megabytes=1 << 21)}).size)
""")
    command = [sys.executable, str(tmp_path / 'read.py'), str(RING)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {'PYTHONPATH': '.'})
    assert len(found.stdout.splitlines()) == 2, found.stderr
    assert found.stderr.count('The memory for reading images is not limited: ') == 1, found.stderr
