"""The explorer in a real browser: in JupyterLab on a running kernel, as a file without one, and in the built report."""

import io
import json
import re

import pytest

pytest.importorskip("jupyterlab", reason='JupyterLab is not installed: pip install -e ".[book]"')
pytest.importorskip("jupyter_book", reason='the book is not installed: pip install -e ".[book]"')

import numpy as np
import xarray as xr
from built_book import NOTEBOOKS, build
from chromium import launch
from lab import server, write_notebook
from matplotlib import colormaps
from PIL import Image

from seg4diff_tools import explore
from seg4diff_tools.explorer.page import STORED, fragment
from seg4diff_tools.explorer.page import page as page_of_files
from seg4diff_tools.explorer.widget import _data_url
from seg4diff_tools.images import Video

WORDS = ["<start>", "a", "cat", "on", "grass", "<end>"]
KINDS = ["start", "word", "word", "word", "word", "end"]
GRID, CANVAS = 8, 512
MAPS = xr.DataArray(
    np.random.default_rng(0).random((5, 7, 6, GRID, GRID), dtype=np.float32),
    {"layer": range(5), "step": range(7), "token": WORDS, "token_kind": ("token", KINDS)},
    ("layer", "step", "token", "y", "x"),
    "i2t",
    {"heads": "mean"},
)
IMAGE = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
CELL = """
([panel, x, y]) => {
  const canvas = document.querySelectorAll(".stage canvas")[panel];
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
}
"""
# Controls without a name, or that the tab key passes over.
NAMELESS = """
() => [...document.querySelectorAll(".explorer :is(button, input, select, [tabindex])")].filter((node) => {
  const named = [node.ariaLabel, node.textContent, ...[...(node.labels ?? [])].map((label) => label.textContent)];
  return node.tabIndex < 0 || !named.some((name) => name?.trim());
}).map((node) => node.outerHTML)
"""
SHOW = """
import numpy as np
import xarray as xr
from seg4diff_tools import explore
view = explore(xr.load_dataarray("maps.nc"), np.load("image.npy"), opacity=1.0)
view
"""


@pytest.fixture(scope="module")
def browser():
    with launch() as running:
        yield running


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A notebook in JupyterLab whose first cell has run."""
    folder = tmp_path_factory.mktemp("lab")
    MAPS.to_netcdf(folder / "maps.nc", engine="h5netcdf")
    np.save(folder / "image.npy", IMAGE)
    write_notebook(folder / "view.ipynb", SHOW)
    with server(folder) as address:
        page = open_page(browser, f"{address}/lab/tree/view.ipynb?reset", height=1400)
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".explorer[data-drawn]")
        yield page
        page.context.close()


@pytest.fixture(scope="module")
def file(browser, tmp_path_factory):
    """The same as a page of its own, with the network off."""
    path = explore(MAPS, IMAGE, opacity=1.0).save_html(tmp_path_factory.mktemp("page") / "view.html")
    page = open_page(browser, path.as_uri(), offline=True, width=700)
    page.wait_for_selector(".explorer[data-drawn]")
    yield page
    page.context.close()


def open_page(browser, address, width=1200, height=1000, **settings):
    page = browser.new_context(viewport={"width": width, "height": height}, **settings).new_page()
    page.set_default_timeout(180_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    return page


@pytest.fixture(params=["lab", "file"])
def page(request):
    """Either of them, at the setting that it begins with."""
    page = request.getfixturevalue(request.param)
    menu(page, "beside it", "nothing")
    menu(page, "show", "map of a word")
    word(page, "cat").click()
    slide(page, "layer", 1)
    slide(page, "step", 5)
    page.keyboard.press("Escape")
    return page


def word(page, label):
    return page.locator(f".word[data-label='{label}']")


def slide(page, label, value):
    """Moves a slider with the keyboard, and leaves the focus on the picture."""
    slider = page.get_by_label(label, exact=True).first
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(value):
        page.keyboard.press("ArrowRight")
    page.locator(".stage").first.focus()


def menu(page, label, choice):
    page.get_by_label(label, exact=True).and_(page.locator("select")).select_option(label=choice)


def drawn(page, text):
    """Waits until what is drawn is what is said."""
    page.wait_for_function("(text) => document.querySelector('.explorer').dataset.drawn.includes(text)", arg=text)
    return page.locator(".status").inner_text()


def pixel(page, row, column, panel=0):
    """Color in the middle of an image token."""
    x, y = (round((at + 0.5) * CANVAS / GRID) for at in (column, row))
    return page.evaluate(CELL, [panel, x, y])


def percent(share):
    """A share of attention as the explorer writes it, here one that is a percent or more."""
    number = 100 * float(share)
    return f"{number:#.2g} %" if number < 9.95 else f"{number:.0f} %"


def expected(layer, step, label, row, column):
    values = MAPS.sel(layer=layer, step=step, token=label)
    low, high = float(values.min()), float(values.max())
    return [255 * c for c in colormaps["viridis"]((float(values[row, column]) - low) / (high - low))[:3]]


def assert_shows(page, layer, step, label, panel=0):
    for row, column in [(0, 0), (2, 5), (6, 3)]:
        np.testing.assert_allclose(pixel(page, row, column, panel), expected(layer, step, label, row, column), atol=8)


def test_words_layers_and_steps_choose_the_map(page):
    said = drawn(page, "layer 1, step 5 of 7")
    values = MAPS.sel(layer=1, step=5, token="cat")
    ends = f"{percent(values.min())} to {percent(values.max())}"
    assert said == f"layer 1, step 5 of 7 (2 left), mean of heads, word “cat”: {ends}"
    assert_shows(page, 1, 5, "cat")
    word(page, "grass").click()
    drawn(page, "grass")
    assert word(page, "grass").get_attribute("aria-pressed") == "true"
    assert_shows(page, 1, 5, "grass")
    slide(page, "layer", 4)
    drawn(page, "layer 4")
    assert_shows(page, 4, 5, "grass")


def test_a_place_has_its_words_ranked(page):
    drawn(page, "layer 1, step 5 of 7")
    canvas = page.locator(".stage canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 2.5 * box["width"] / GRID, box["y"] + 6.5 * box["height"] / GRID)
    values = MAPS.sel(layer=1, step=5).isel(y=6, x=2)
    page.get_by_text("words at row 6, column 2").wait_for()
    ranked = page.locator(".ranking li:visible .name").all_inner_texts()
    assert ranked == [WORDS[i] for i in np.argsort(-values.values)]
    assert page.locator(".ranking li:visible .value").first.inner_text() == percent(values.max())
    page.mouse.move(0, 0)
    page.get_by_text("words, mean over the picture").wait_for()


def test_keys_move(page):
    drawn(page, "layer 1, step 5 of 7")
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    drawn(page, "layer 3, step 4 of 7")
    assert_shows(page, 3, 4, "cat")
    page.keyboard.press("Shift+ArrowRight")
    page.get_by_text("words at row 4, column 5", exact=True).wait_for()
    # which a screen reader hears too
    said = page.locator(".status").inner_text().split("\n")[1]
    assert re.fullmatch(r"words at row 4, column 5: (\S+ [\d.]+ %(, )?){3}", said)
    assert "cell=[4, 5]" in page.locator(".code code").inner_text()


def test_two_settings_side_by_side_move_together(page):
    menu(page, "beside it", "another layer")
    slide(page, "layer beside", 3)
    word(page, "grass").click()
    said = drawn(page, "layer 3, step 5 of 7 (2 left), mean of heads, word “grass”")
    assert said.startswith("layer 1, step 5 of 7 (2 left), mean of heads, word “grass”")
    assert_shows(page, 1, 5, "grass")
    assert_shows(page, 3, 5, "grass", panel=1)
    assert page.locator(".ranking:visible").count() == 2


def test_the_menu_that_adds_a_panel_keeps_the_focus(page):
    page.get_by_label("beside it", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => document.querySelectorAll('.panel:not([hidden])').length === 2")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "beside it"


def test_cells_without_a_value_leave_the_others_theirs(browser, tmp_path):
    # steps whose numbers JavaScript spells otherwise than Python
    holes = MAPS.copy().assign_coords(step=[1000.0 - step for step in range(7)])
    holes[..., 0, 0] = np.nan
    path = explore(holes, IMAGE, opacity=1.0, token="cat", layer=2).save_html(tmp_path / "view.html")
    page = open_page(browser, path.as_uri(), offline=True)
    page.wait_for_selector(".explorer[data-drawn]")
    values = holes.sel(layer=2, token="cat").isel(step=5)
    low, high = float(values.min()), float(values.max())
    color = [255 * c for c in colormaps["viridis"]((float(values[4, 4]) - low) / (high - low))[:3]]
    np.testing.assert_allclose(pixel(page, 4, 4), color, atol=8)
    assert page.errors == []
    assert "no map" not in page.locator(".scale").first.inner_text()
    page.context.close()


def test_small_maps_go_to_a_layer(page):
    thumbs = page.locator(".strip button")
    assert thumbs.count() == 5
    thumbs.nth(2).click()
    drawn(page, "layer 2, step 5 of 7")
    assert_shows(page, 2, 5, "cat")


def test_masks_take_the_color_of_the_highest_word(page):
    menu(page, "show", "masks of words")
    drawn(page, "masks of 2 words")
    cat, grass = (MAPS.sel(layer=1, step=5, token=label).values for label in ("cat", "grass"))
    for row, column in [(0, 0), (2, 5), (6, 3), (7, 7)]:
        color = [0, 114, 178] if cat[row, column] > grass[row, column] else [230, 159, 0]
        assert pixel(page, row, column) == pytest.approx(color, abs=1)
    assert 'classes=["cat", "grass"]' in page.locator(".code code").inner_text()
    assert page.get_by_label("colors", exact=True).is_disabled()
    word(page, "cat").click()
    drawn(page, "masks of 1 word")
    assert pixel(page, 2, 5) == pytest.approx([230, 159, 0], abs=1), "a word left keeps its color"
    word(page, "cat").click()
    drawn(page, "masks of 2 words")
    menu(page, "show", "map of a word")
    assert page.get_by_label("colors", exact=True).is_enabled()


def test_the_view_can_be_taken_along(page, tmp_path):
    drawn(page, "layer 1, step 5 of 7")
    code = page.locator(".code code").inner_text()
    assert code == 'explore(maps, image, layer=1, step=5, token="cat", opacity=1)'
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    picture = np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes())).convert("RGB"))
    np.testing.assert_allclose(picture[16 + 32, 16 + 32], expected(1, 5, "cat", 0, 0), atol=8)
    scale = picture[16 + CANVAS + 8 + 8]  # through the middle of the color scale
    for end in (0, 1):
        assert (np.abs(scale - [255 * c for c in colormaps["viridis"](float(end))[:3]]).max(1) < 8).any()


def test_nothing_overflows_and_nothing_goes_wrong(page):
    drawn(page, "layer 1, step 5 of 7")
    widest = "(() => { const e = document.querySelector('.explorer'); return [e.scrollWidth, e.clientWidth]; })()"
    inner, outer = page.evaluate(widest)
    assert inner <= outer
    assert page.errors == []


def test_a_link_opens_its_view(browser, file, tmp_path):
    """Each part of a link; parts that the page does not have are told, and anchors of the page are none."""
    bare = file.url
    page = open_page(browser, f"{bare}#layer=3&step=2&token=grass&colors=magma&cell=4,5&beside=layer:0", offline=True)
    said = drawn(page, "layer 0, step 2 of 7")
    assert said.startswith("layer 3, step 2 of 7 (5 left), mean of heads, word “grass”")
    assert "words at row 4, column 5: " in said
    assert page.get_by_label("colors", exact=True).input_value() == "magma"
    for part, told in [
        ("layer=77&token=cat", "asks for layer=77, which"),
        ("stp=2&token=lion", "asks for stp=2 and token=lion, which"),
        ("view=3&layer=1", "asks for view=3, which"),
        ("cell=9,9&opacity=2&beside=x:1", "asks for cell=9,9 and opacity=2 and beside=x:1, which"),
    ]:
        page.evaluate("(part) => (location.hash = part)", part)
        page.locator(".note.trouble", has_text=told).wait_for()
    page.evaluate("location.hash = 'layer=2&classes=cat&classes=on&beside='")
    drawn(page, "layer 2, step 2 of 7 (5 left), mean of heads, masks of 2 words")
    assert page.locator(".note.trouble").count() == 0
    page.evaluate("location.hash = 'the-same-from-code'")
    word(page, "grass").click()
    said = drawn(page, "masks of 3 words")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_text("Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert (link.startswith(f"{bare}#layer=2&"), page.url) == (True, link)
    assert page.errors == []
    page.goto("about:blank")
    page.goto(link)
    assert drawn(page, "masks of 3 words") == said
    page.context.close()


def test_a_link_names_one_of_several(browser, tmp_path):
    views = [explore(MAPS, IMAGE), explore(MAPS, IMAGE, mode="masks")]
    html = page_of_files(views[0].stored(), "two").replace("<script>(()", fragment(views[1].stored()) + "<script>(()")
    (tmp_path / "two.html").write_text(html)
    page = open_page(browser, (tmp_path / "two.html").as_uri() + "#view=2&layer=4&token=on", offline=True, height=500)
    page.wait_for_function("document.querySelectorAll('.explorer[data-drawn]').length === 2")
    first, second = page.locator(".status").all_inner_texts()
    assert first.startswith("layer 1, step 5")
    assert second.startswith("layer 4, step 5 of 7 (2 left), mean of heads, word “on”")
    page.wait_for_function("document.querySelectorAll('.explorer')[1].getBoundingClientRect().top < 200")
    page.context.close()


def test_a_step_shows_the_picture_that_it_predicted(browser, tmp_path):
    view = explore(MAPS, IMAGE, opacity=0.0, step=2)
    ends = [Image.new("RGB", (8, 8), (30 * step, 100, 200)) for step in range(7)]
    view.step_pictures = [_data_url(picture) for picture in ends]
    page = open_page(browser, view.save_html(tmp_path / "view.html").as_uri(), offline=True)
    drawn(page, "step 2 of 7 (5 left), mean of heads, word “cat”")
    assert pixel(page, 4, 4) == pytest.approx([60, 100, 200], abs=3)
    slide(page, "step", 6)
    assert drawn(page, "step 6 of 7").endswith("over the picture predicted at this step")
    assert pixel(page, 4, 4) == pytest.approx([180, 100, 200], abs=3)
    menu(page, "under it", "the picture itself")
    page.wait_for_function("!document.querySelector('.explorer').dataset.drawn.includes('predicted')")
    assert 'under="picture"' in page.locator(".code code").inner_text()
    assert pixel(page, 4, 4) != pytest.approx([180, 100, 200], abs=3)
    page.context.close()


def test_a_slider_and_keys_choose_the_frame_of_a_video(browser, tmp_path):
    frames = [MAPS[:2, :3] * factor for factor in (1.0, 0.5, 0.25)]
    maps = xr.concat(frames, xr.DataArray(range(3), dims="frame", name="frame")).assign_attrs(heads="mean")
    video = Video([Image.new("RGB", (16, 16), (20 * at, 100, 200)) for at in range(9)])
    view = explore(maps, video, opacity=0.0, token="cat", multiples="frame")
    path = view.save_html(tmp_path / "view.html")
    page = open_page(browser, f"{path.as_uri()}#frame=1", offline=True)
    drawn(page, "frame 1, ")
    # the middle one of frames 1 to 4
    assert pixel(page, 4, 4) == pytest.approx([40, 100, 200], abs=3)
    page.locator(".stage").first.focus()
    page.keyboard.press(".")
    drawn(page, "frame 2, ")
    assert pixel(page, 4, 4) == pytest.approx([120, 100, 200], abs=3)
    page.keyboard.press(",")
    page.keyboard.press(",")
    drawn(page, "frame 0, ")
    assert pixel(page, 4, 4) == pytest.approx([0, 100, 200], abs=3)
    slide(page, "frame", 2)
    drawn(page, "frame 2, ")
    thumbs = "[...document.querySelectorAll('.strip canvas')]"
    page.wait_for_function(f"{thumbs}.filter((one) => one.width > 1).length === 3")
    page.get_by_label("frame 1", exact=True).click()
    drawn(page, "frame 1, ")
    assert "frame=1" in page.locator(".code code").inner_text()
    assert page.errors == []
    page.context.close()


def test_a_page_of_an_earlier_version_has_no_frames(browser, tmp_path):
    stored = explore(MAPS, IMAGE, opacity=1.0, token="cat").stored(1 << 23)
    del stored["axes"]["frame"], stored["frame"]
    # its maps were found by one place less, after that of the image
    stored["slices"] = {re.sub(r"^(\d+,\d+,\d+),0", r"\1", key): maps for key, maps in stored["slices"].items()}
    path = tmp_path / "view.html"
    path.write_text(page_of_files(stored, "view"), encoding="utf-8")
    page = open_page(browser, path.as_uri(), offline=True)
    drawn(page, "layer 1, step 5 of 7")
    assert_shows(page, 1, 5, "cat")
    assert page.errors == []
    page.context.close()


def test_a_finger_moves_everything(browser, file):
    phone = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = open_page(browser, file.url, offline=True, width=390, height=844, **phone)
    drawn(page, "layer 1, step 5 of 7")
    word(page, "grass").tap()
    drawn(page, "“grass”")
    slider = page.get_by_label("layer", exact=True).first
    box = slider.bounding_box()
    slider.tap(position={"x": box["width"] - 4, "y": box["height"] / 2})
    drawn(page, "layer 4, step 5 of 7")
    page.locator(".strip button").nth(2).tap()
    drawn(page, "layer 2, step 5 of 7")
    canvas = page.locator(".stage canvas").first
    side = canvas.bounding_box()["width"] / GRID
    canvas.tap(position={"x": 2.5 * side, "y": 6.5 * side})
    page.locator(".status", has_text="words at row 6, column 2: ").wait_for()
    menu(page, "show", "masks of words")
    drawn(page, "masks of 2 words")
    buttons = page.locator(".explorer :is(button, select):visible").all()
    assert min(button.bounding_box()["height"] for button in buttons) >= 24
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
    page.context.close()


def test_every_control_has_a_name_and_takes_the_keyboard(page):
    assert page.evaluate(NAMELESS) == []
    word(page, "grass").focus()
    page.keyboard.press("Enter")
    drawn(page, "“grass”")
    page.locator(".strip button").nth(3).focus()
    page.keyboard.press("Space")
    drawn(page, "layer 3, step 5 of 7")


def test_python_follows_and_leads(lab):
    """What is clicked is in the traits, what is set is shown, and data come as a file."""
    word(lab, "grass").click()
    run(lab, "view.layer, view.step, view.opacity, view.colors = 4, 2, 1, 'magma'; print('token', view.token)")
    lab.get_by_text("token grass", exact=True).wait_for()
    drawn(lab, "layer 4, step 2 of 7")
    with lab.expect_download() as download:
        lab.get_by_role("button", name="Save data").click()
    data = xr.load_dataarray(download.value.path(), engine="h5netcdf")
    assert (data.values == MAPS.sel(layer=4, step=2, token="grass").values).all()


def test_things_are_dragged_and_masks_follow(lab):
    run(lab, "from seg4diff_tools import compose_scene, load_backbone; compose_scene(load_backbone('mini'))")
    scene = lab.locator(".explorer[data-drawn]").nth(1)
    scene.wait_for()
    thing, code = scene.locator(".object").first, scene.locator(".code code")
    assert '("cat", (0.30, 0.62), 0.50)' in code.inner_text()
    before = scene.locator(".stage canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    thing.scroll_into_view_if_needed()
    box = thing.bounding_box()  # half as wide as the picture
    lab.mouse.move(box["x"] + 20, box["y"] + 20)
    lab.mouse.down()
    lab.mouse.move(box["x"] + 20 + 0.4 * box["width"], box["y"] + 20, steps=3)
    lab.mouse.up()
    scene.locator("code", has_text='("cat", (0.50, 0.62), 0.50)').wait_for()
    lab.wait_for_function("(c) => document.querySelectorAll('.stage canvas')[2].toDataURL() !== c", arg=before)


def test_two_share_a_box(lab):
    run(lab, "from ipywidgets import HBox; HBox([view, view])")
    box = lab.locator(".widget-hbox .explorer")
    box.nth(1).wait_for()
    left, right = box.nth(0).bounding_box(), box.nth(1).bounding_box()
    assert left["width"] > 280
    assert right["width"] > 280
    assert left["x"] + left["width"] <= right["x"]


def test_the_chapter_leaves_its_first_explorer_alone(lab):
    """Its cells, run one after the other, up to the one that reads the view; a shorter schedule, for time."""
    notebook = next(path for path in NOTEBOOKS if path.stem.endswith("explore"))
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    last = next(i for i, source in enumerate(sources) if "view." in source)
    count = lab.locator(".explorer[data-drawn]").count()
    code = "\n".join(sources[:last]).replace("STEPS = 28", "STEPS = 9")
    assert "STEPS = 9" in code
    run(lab, code)
    first = lab.locator(".explorer[data-drawn]").nth(count)
    first.wait_for()
    before = first.locator(".status").inner_text()
    run(lab, sources[last])
    lab.get_by_text(re.compile(r"Layer \d+: \d+% of the pixels")).wait_for()
    assert first.locator(".status").inner_text() == before
    assert before.startswith("layer 4, step 1 of 9 (8 left), mean of heads, word “strawberry”")


def test_a_restarted_kernel_is_named(lab):
    """Comes after all others that need the kernel."""
    lab.get_by_text("Kernel", exact=True).click()
    lab.get_by_text("Restart Kernel…", exact=True).click()
    lab.locator(".jp-Dialog .jp-mod-accept").click()
    lab.locator(".jp-Dialog").wait_for(state="detached")
    slide(lab, "layer", 0)
    lab.get_by_text("Python does not answer").first.wait_for()


def run(page, code):
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")


def test_the_report_explores_without_a_network(browser):
    notebook = next(path for path in NOTEBOOKS if path.stem.endswith("explore"))
    cells = json.loads(notebook.read_text())["cells"]
    stored = [
        output["data"][STORED] for cell in cells for output in cell.get("outputs", []) if STORED in output["data"]
    ]
    address = (build() / "notebooks" / f"{notebook.stem}.html").as_uri()
    page = open_page(browser, f"{address}#layer=9&token=airplane", offline=True)
    page.wait_for_function("(n) => document.querySelectorAll('.explorer[data-drawn]').length === n", arg=len(stored))
    linked = page.locator(".explorer").first.locator(".status").inner_text()
    assert re.match("layer 9, .*, word “airplane”: ", linked)
    explorer, last = page.locator(".explorer").first, stored[0]["axes"]["layer"][-1]
    before = explorer.locator(".stage").first.screenshot()
    explorer.locator(".strip button").last.click()
    page.wait_for_function(f"document.querySelector('.explorer').dataset.drawn.startsWith('layer {last},')")
    assert explorer.locator(".stage").first.screenshot() != before
    said = explorer.locator(".status").inner_text()
    assert re.match(rf"layer {last}, step \d+( of \d+ \(\d+ left\))?, mean of heads, word “\w+”: ", said)
    assert page.errors == []
    page.context.close()
