"""How long the page of `timm-sk demo` takes from a move of the slider to the drawn chart, in chromium.

`python benchmarks/demo_latency.py` needs the extra `browser` and chromium. Each move sets the slider to another scale,
as a finger would; the browser's clock runs from the event until the frame after the one that draws the new chart.
"""

import shutil
import statistics
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright

from timm_sk.demo.server import serving

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']

MOVE = """
(scale) => new Promise((done) => {
    const slider = document.querySelector('input[type=range]');
    const wanted = `seen at ${scale}×`;
    const began = performance.now();
    const look = () => {
        if (!document.querySelector('.sk-seen').textContent.includes(wanted)) return requestAnimationFrame(look);
        requestAnimationFrame(() => done(performance.now() - began));
    };
    slider.value = scale;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    look();
})
"""


def main(
    model: Annotated[str, typer.Option(help='Model to measure.')] = 'sknet_atto.shapes',
    moves: Annotated[int, typer.Option(min=20, help='Counted moves; ten more go before.')] = 60,
    chromium: Annotated[str, typer.Option(help='The browser.')] = 'chromium',
) -> None:
    """Move the slider and print median, 95th percentile and greatest time in ms."""
    scales = [1 + 0.05 * (1 + 7 * move % 39) for move in range(moves + 10)]
    with serving(model) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(chromium), args=FLAGS)
        page = browser.new_page(viewport=dict(width=1400, height=900))
        page.goto(address)
        page.wait_for_selector('.sk-units')
        times = [page.evaluate(MOVE, round(scale, 2)) for scale in scales][10:]
        browser.close()
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f'{model}: {moves} moves, median {statistics.median(times):.0f} ms, p95 {p95:.0f}, most {max(times):.0f}')


if __name__ == '__main__':
    typer.run(main)
