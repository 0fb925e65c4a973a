"""How quickly the explorer answers, for a recording of SD3-medium's size: 24 layers, 28 steps, 77 tokens of 64 x 64.

Run from the repository: python -m tests.benchmarks.bench_explorer (in float32 it needs 1 GB of memory; --dtype float16
half of it)

- Python: opening the recording, and what it takes to answer when a control is moved
- page: from the movement of a slider to the drawn picture, in a page that holds a part of the recording (needs
chromium) - JupyterLab: the same with a kernel that holds all of it
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from seg4diff_tools import explore
from seg4diff_tools.explorer.widget import Explorer

LAYERS, STEPS, TOKENS, SIDE = 24, 28, 77, 64
WORDS = ["<start>", "a", "cat", "and", "a#2", "dog", "in", "front", "of", "the", "house", "<end>"]
REPEATS = 50
DRAWN = ".explorer[data-drawn]"

LOAD = """
import numpy as np
import xarray as xr
from seg4diff_tools import explore
maps = xr.load_dataarray("maps.nc")
print("loaded")
"""
MOVE = """
([label, value]) => new Promise((resolve) => {
  const slider = document.querySelector(`input[aria-label=${label}]`);
  const root = document.querySelector(".explorer");
  const began = performance.now();
  new MutationObserver((_, observer) => {
    observer.disconnect();
    resolve(performance.now() - began);
  }).observe(root, { attributeFilter: ["data-drawn"] });
  if (Number(slider.value) === value) return resolve(0);
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
})
"""


def recording(dtype: str) -> xr.DataArray:
    rng = np.random.default_rng(0)
    maps = np.empty((STEPS, LAYERS, TOKENS, SIDE, SIDE), dtype)
    for step in maps:
        step[:] = rng.random(step.shape, dtype=np.float32)
    words = [*WORDS, "<pad>", *(f"<pad>#{i}" for i in range(2, TOKENS - len(WORDS) + 1))]
    kinds = ["start", *["word"] * (len(WORDS) - 2), "end", *["pad"] * (TOKENS - len(WORDS))]
    coords = {"step": range(STEPS), "layer": range(LAYERS), "token": words, "token_kind": ("token", kinds)}
    return xr.DataArray(maps, coords, ("step", "layer", "token", "y", "x"), "i2t", {"heads": "mean"})


def answers(view: Explorer) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names of movements, and the work that Python has with each."""
    rng = np.random.default_rng(1)

    def ask(**question) -> None:
        selection = view.selection | {"layer": int(rng.integers(LAYERS)), "step": int(rng.integers(STEPS))}
        view._answer(view, {**question, "selection": selection}, [])

    yield "move layer or step: all words", lambda: ask(ask="slice")
    yield "small maps of a word in all layers", lambda: ask(ask="along", axis="layer", tokens=[2])
    yield (
        "small maps of all padding in all layers",
        lambda: ask(ask="along", axis="layer", tokens=list(range(12, TOKENS))),
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def report(name: str, milliseconds: list[float]) -> None:
    print(f"| {name} | {statistics.median(milliseconds):.1f} | {max(milliseconds):.1f} |", flush=True)


def in_page(browser, maps: xr.DataArray, picture: np.ndarray, folder: Path) -> None:
    part = maps.isel(step=slice(0, 28, 7), layer=slice(0, 24, 6))
    for mode in ("map", "masks"):
        path = explore(part, picture, mode=mode, store=64 << 20).save_html(folder / "view.html")
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector(DRAWN)
        moves = [(axis, value) for value in range(4) for axis in ("layer", "step")]
        report(f"page: move layer or step, {mode}", [moved(page, *move) for move in [*moves[::-1], *moves[:-1]]])
        page.close()


def in_lab(browser, maps: xr.DataArray, picture: np.ndarray, folder: Path) -> None:
    from tests.browser.lab import server, write_notebook

    maps.to_netcdf(folder / "maps.nc", engine="h5netcdf")
    np.save(folder / "picture.npy", picture)
    write_notebook(folder / "view.ipynb", LOAD, "explore(maps, np.load('picture.npy'))")
    with server(folder) as address:
        page = browser.new_page(viewport={"width": 1200, "height": 1200})
        page.goto(f"{address}/lab/tree/view.ipynb?reset")
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.get_by_text("loaded", exact=True).wait_for(timeout=60_000)
        report("JupyterLab: show", [timed(lambda: (page.keyboard.press("Shift+Enter"), page.wait_for_selector(DRAWN)))])
        for axis, count in (("layer", LAYERS), ("step", STEPS)):
            report(f"JupyterLab: move {axis} by one", [moved(page, axis, place) for place in range(count - 1)])
        jumps = np.random.default_rng(3).permutation(LAYERS)
        page.keyboard.press("Escape")
        report("JupyterLab: jump to a layer", [moved(page, "layer", int(place)) for place in jumps])
        page.close()


def moved(page, axis: str, place: int) -> float:
    """Milliseconds; a hand rests between two movements."""
    page.wait_for_timeout(200)
    return page.evaluate(MOVE, [axis, place])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    dtype = parser.parse_args().dtype
    maps = recording(dtype)
    picture = np.random.default_rng(2).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    print(
        f"{maps.nbytes / 1e6:.0f} MB of {dtype}: {LAYERS} layers, {STEPS} steps, {TOKENS} tokens of {SIDE} x {SIDE}\n"
    )
    print("| what | median, ms | largest, ms |")
    print("|---|---|---|")
    report("open", [timed(lambda: explore(maps, picture)) for _ in range(3)])
    view = explore(maps, picture)
    report("what a notebook keeps of it", [timed(view.stored)])
    for name, work in answers(view):
        report(name, [timed(work) for _ in range(REPEATS)])
    if shutil.which("chromium"):
        from playwright.sync_api import sync_playwright

        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            in_page(browser, maps, picture, Path(folder))
            in_lab(browser, maps, picture, Path(folder))
            browser.close()


if __name__ == "__main__":
    main()
