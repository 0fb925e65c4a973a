"""The explorer: pick layer, step, head and word, and see what image tokens attend to; in JupyterLab and in a page.

Python holds the maps and sends what is looked at, one setting at a time; `static/explorer.js` draws.
"""

import base64
import io
import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import numpy as np
import PIL.Image
import traitlets
import xarray as xr
from jaxtyping import Float
from matplotlib.colors import to_hex
from tqdm.auto import tqdm

from seg4diff_tools.atlas import AXES, Atlas, content_words, quantise
from seg4diff_tools.backbones import Backbone
from seg4diff_tools.errors import InputError, Seg4DiffError
from seg4diff_tools.images import ImageLike, open_images
from seg4diff_tools.live import record_live
from seg4diff_tools.pages import STATIC, STORED, page
from seg4diff_tools.plots import class_colours
from seg4diff_tools.recorder import AttentionRecorder, Recording, open_recording

COLOURS = ("viridis", "magma", "cividis", "gray")
SIDE = 512
Source = Backbone | AttentionRecorder | Recording | xr.DataArray | str | os.PathLike | Mapping[str, Any]


class Explorer(anywidget.AnyWidget):
    """A viewer of recorded maps, made by `explore`; a widget like any other, to be put into an HBox or a tab.

    Attributes:
        layer, step, head, block, branch, image, recording: what is chosen, as it is named in the recording; None for what
            was not recorded. To set and to observe, as all that follow.
        token: the word or token whose map is shown.
        beside: what the second panel has of its own, such as {"layer": 9}; {} for one panel.
        mode: "map", or "masks" for the most attended of `classes` at every place (Seg4Diff, Eq 12).
        classes: the words that masks choose from.
        cell: row and column of the pinned image token, or None.
        colours: "viridis", "magma", "cividis" or "gray"; all perceptually uniform.
        opacity: of the map over the image, 0 to 1.
        shared: one scale for both panels.
        pieces: tokens in place of words.
        multiples: axis along which small multiples are shown, "" for none.
    """

    _esm = STATIC / "explorer.js"
    _css = STATIC / "explorer.css"

    recording, block, image, branch, layer, step, head = (traitlets.Any().tag(sync=True) for _ in AXES)
    token = traitlets.Unicode().tag(sync=True)
    beside = traitlets.Dict().tag(sync=True)
    mode = traitlets.Enum(("map", "masks"), "map").tag(sync=True)
    classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    cell = traitlets.List(traitlets.Int(), None, minlen=2, maxlen=2, allow_none=True).tag(sync=True)
    colours = traitlets.Enum(COLOURS, COLOURS[0]).tag(sync=True)
    opacity = traitlets.Float(0.7, min=0, max=1).tag(sync=True)
    shared = traitlets.Bool().tag(sync=True)
    pieces = traitlets.Bool().tag(sync=True)
    multiples = traitlets.Unicode("layer").tag(sync=True)

    # what the front end is told
    axes = traitlets.Dict().tag(sync=True)
    tokens = traitlets.List().tag(sync=True)
    words = traitlets.List().tag(sync=True)
    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    palette = traitlets.Dict().tag(sync=True)
    call = traitlets.Unicode().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    revision = traitlets.Int().tag(sync=True)

    SETTINGS = (
        *AXES,
        "token",
        "beside",
        "mode",
        "classes",
        "cell",
        "colours",
        "opacity",
        "shared",
        "pieces",
        "multiples",
    )

    def __init__(self, atlas: Atlas, pictures: Sequence[PIL.Image.Image], call: str, store: int, **settings: Any):
        if unknown := set(settings) - set(self.SETTINGS):
            raise InputError(f"explore has no setting {', '.join(sorted(unknown))}; it has {', '.join(self.SETTINGS)}")
        self._atlas, self._store = atlas, store
        super().__init__(call=call, palette=_palette(), **(_described(atlas, pictures) | settings))
        self.on_msg(self._answer)

    @traitlets.validate(*AXES)
    def _check_axis(self, proposal: dict) -> Any:
        return self._atlas.check(proposal["trait"].name, proposal["value"])

    @traitlets.validate("token")
    def _check_token(self, proposal: dict) -> str:
        return self._atlas.find(proposal["value"]).label

    @traitlets.validate("classes")
    def _check_classes(self, proposal: dict) -> list[str]:
        return [self._atlas.find(label).label for label in proposal["value"]]

    @traitlets.validate("beside")
    def _check_beside(self, proposal: dict) -> dict:
        if len(proposal["value"]) > 1 or set(proposal["value"]) - set(AXES):
            raise InputError(f"expected beside={{}} or one of {', '.join(AXES)} and its value, got {proposal['value']}")
        return {axis: self._atlas.check(axis, value) for axis, value in proposal["value"].items()}

    @traitlets.validate("multiples")
    def _check_multiples(self, proposal: dict) -> str:
        if proposal["value"] not in ("", *AXES):
            raise InputError(f"expected multiples='' or one of {', '.join(AXES)}, got {proposal['value']!r}")
        return proposal["value"]

    @property
    def selection(self) -> dict[str, Any]:
        """The value of each axis; that of the second panel is `selection | beside`."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def data(self) -> xr.DataArray:
        """What is shown, unreduced: the map [y x] of the word, or with masks the maps [class y x] of the classes.

        With a second panel, both, along an axis with the name of what differs. The settings stand in `attrs`.
        """
        labels = self.classes if self.mode == "masks" else [self.token]
        panels = [self.selection, *([self.selection | self.beside] if self.beside else [])]
        values = np.stack([[self._atlas.word_map(panel, label) for label in labels] for panel in panels])
        found = xr.DataArray(values, {"class": labels}, ("panel", "class", "y", "x"), name="attention")
        for axis in self.beside:
            found = found.rename(panel=axis).assign_coords({axis: [panel[axis] for panel in panels]})
        found.attrs = {
            axis: value for axis, value in self.selection.items() if value is not None and axis not in self.beside
        }
        if self.mode == "map":
            found.attrs["token"] = self.token
            found = found.isel({"class": 0}, drop=True)
        return found if self.beside else found.isel(panel=0)

    def stored(self) -> dict[str, Any]:
        """What a page needs to show this view without Python, of about `store` characters; see `Atlas.stored`."""
        fixed = ("pictures", "palette", "call")
        return {name: getattr(self, name) for name in (*self.SETTINGS, *fixed)} | self._atlas.stored(
            self._store, self.selection
        )

    def save_html(self, path: str | os.PathLike) -> Path:
        """Writes the view as a page in one file, which needs no Python and no network; returns its path."""
        path = Path(path)
        path.write_text(page(self.stored(), f"Attention to {self.token!r}"))
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle and self._store:
            bundle[0][STORED] = self.stored()
        return bundle

    def __repr__(self) -> str:
        return f"Explorer(layer={self.layer}, step={self.step}, head={self.head!r}, token={self.token!r})"

    def _answer(self, _: Any, question: dict, buffers: list) -> None:
        """Answers the front end; every answer holds its question."""
        try:
            if question["ask"] == "slice":
                self._send_maps(question, self._atlas.maps(question["selection"]))
            elif question["ask"] == "along":
                maps = self._atlas.along(question["axis"], question["selection"], question["tokens"])
                self._send_maps(question, maps)
            elif question["ask"] == "file":
                self.send({"question": question}, [_netcdf(self.data)])
        except Seg4DiffError as error:
            self.send({"question": question, "error": str(error)})

    def _send_maps(self, question: dict, maps: Float[np.ndarray, "map y x"]) -> None:
        self.send({"question": question, "shape": maps.shape}, [quantise(maps).content])


class LiveExplorer(Explorer):
    """An explorer with the model behind it, which records anew whenever prompt, seed or picture change.

    Attributes:
        prompt: what the model reads.
        seed: of the noise.
        picture: what it looks at; None for what it draws.
        progress: 0 to 1 while it records, 1 when it has.
    """

    prompt = traitlets.Unicode().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    progress = traitlets.Float(1.0).tag(sync=True)
    picture = traitlets.Any()

    def __init__(
        self,
        backbone: Backbone,
        picture: ImageLike | None,
        prompt: str,
        seed: int,
        steps: int,
        options: Mapping[str, Any],
        store: int,
        **settings: Any,
    ):
        self._recipe = backbone, steps, options
        self._cancelled, self._busy, self._thread = threading.Event(), threading.Lock(), None
        with tqdm(desc="recording", unit="step", leave=False) as bar:
            recording, shown = record_live(
                *self._recipe, picture, prompt, seed, lambda done, of: _advance(bar, done, of)
            )
        atlas = Atlas({"live": _map_blocks(recording)})
        expert = backbone.expert_layer
        if expert in atlas.axes["layer"]:
            settings = {"layer": expert} | settings
        call = _live_call(picture, prompt, seed)
        super().__init__(atlas, [shown], call, store, **settings)
        self.set_trait("picture", picture)
        self.prompt, self.seed = prompt, seed
        self.observe(self._record_again, ["prompt", "seed", "picture"])

    def wait(self) -> None:
        """Returns when the recording that runs in the background has ended."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Ends the recording that runs in the background after its present step; the maps stay as they were."""
        self._cancelled.set()

    def close(self) -> None:
        """Ends what runs in the background, and the widget."""
        self.cancel()
        super().close()

    def _answer(self, _: Any, question: dict, buffers: list) -> None:
        if question["ask"] == "cancel":
            self.cancel()
        else:
            super()._answer(_, question, buffers)

    def _record_again(self, change: object) -> None:
        self.cancel()
        self._cancelled = threading.Event()
        arguments = self._cancelled, self.picture, self.prompt, self.seed
        self._thread = threading.Thread(target=self._record, args=arguments, daemon=True)
        self._thread.start()

    def _record(self, cancelled: threading.Event, picture: ImageLike | None, prompt: str, seed: int) -> None:
        def report(done: int, of: int) -> None:
            if cancelled.is_set():
                raise _CancelledError
            self.progress = done / of

        with self._busy:
            try:
                report(0, 1)
                self.message = ""
                recording, shown = record_live(*self._recipe, picture, prompt, seed, report)
                self._replace(Atlas({"live": _map_blocks(recording)}), [shown])
                self.call = (
                    f"explore(backbone, {'image, ' if picture is not None else ''}prompt={prompt!r}, seed={seed}"
                )
            except _CancelledError:
                self.message = "Stopped: the maps are those from before."
            except Exception as error:  # in a thread, whatever goes wrong has to reach the reader as a sentence
                self.message = str(error) or type(error).__name__
            finally:
                self.progress = 1.0

    def _replace(self, atlas: Atlas, pictures: Sequence[PIL.Image.Image]) -> None:
        """Shows other maps, with the settings as far as they are still there."""
        self._atlas = atlas
        described = _described(atlas, pictures)
        labels = {word.label for word in (*atlas.words, *atlas.tokens)}
        kept = {axis: getattr(self, axis) for axis in AXES if getattr(self, axis) in atlas.axes[axis]}
        kept |= {"token": self.token} if self.token in labels else {}
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in (described | kept).items():
                setattr(self, name, value)
            self.revision += 1


class _CancelledError(Exception):
    pass


def explore(
    source: Source,
    image: ImageLike | Sequence[ImageLike] | None = None,
    *,
    prompt: str | None = None,
    seed: int = 0,
    steps: int = 28,
    record: Mapping[str, Any] | None = None,
    store: int = 1 << 20,
    **settings: Any,
) -> Explorer:
    """Shows what image tokens attend to: choose layer, step, head and word, point at a place and see its words ranked.

    Args:
        source: recorded maps: a recorder, a recording or the path of a saved one, maps with the axes y, x and any of image,
            branch, layer, step, head and token (or class); a dictionary of several, by name, to see them side by side; or
            a backbone, which records what `prompt`, `seed` and the picture say.
        image: the picture that the maps belong to, one for each of axis image; None shows the maps alone. With a
            backbone, the picture that it looks at, at every step's noise; None lets it draw one.
        prompt: what the backbone reads; a prompt may also stand in the place of the image.
        seed: of the backbone's noise.
        steps: of the backbone's schedule.
        record: more arguments of `AttentionRecorder` for a backbone, such as {"heads": "all", "block": ["i2t", "t2i"]}.
        store: characters of maps that a saved notebook keeps for the report, where there is no Python; 0 for none.
        settings: attributes of `Explorer`, such as layer=4, token="cat", beside={"layer": 9} or mode="masks".

    Returns:
        The viewer; the last line of a cell shows it. `view.layer = 9` moves it, `view.observe(function, "token")` follows
        it, `view.data` has what it shows and `view.save_html("view.html")` writes it as a page.

    Raises:
        InputError: nothing to show, a setting that was not recorded, or recordings that do not belong together.
        RecordingError: a file that is no recording, is damaged, or is of another version.

    Example: `explore(recorder, scene.image, token="cat")`, `explore(backbone, "a cat and a tree on grass")`,
    `explore({"before": first, "after": second}, image, beside={"recording": "after"})`.
    """
    if isinstance(source, Backbone):
        if isinstance(image, str) and Path(image).suffix.lower() not in PIL.Image.registered_extensions():
            image, prompt = None, image if prompt is None else prompt
        if prompt is None:
            raise InputError("expected a prompt beside a backbone: explore(backbone, image, prompt='a cat on grass')")
        return LiveExplorer(source, image, prompt, seed, steps, record or {}, store, **settings)
    if prompt is not None or record is not None:
        raise InputError(f"expected a backbone with prompt or record, got a {type(source).__name__}")
    several = isinstance(source, Mapping)
    recordings = {str(name): _blocks(part) for name, part in source.items()} if several else {"": _blocks(source)}
    atlas = Atlas(recordings)
    pictures = [] if image is None else open_images(image)
    if len(pictures) not in (0, 1, len(atlas.axes["image"])):
        raise InputError(
            f"expected one picture or one for each of {len(atlas.axes['image'])} images, got {len(pictures)}"
        )
    call = f"explore({_source_name(source)}{', image' if pictures else ''}"
    return Explorer(atlas, pictures, call, store, **settings)


def _source_name(source: Source) -> str:
    """What the source is called in a line of code."""
    if isinstance(source, (str, os.PathLike)):
        return json.dumps(str(source))
    return {dict: "recordings", xr.DataArray: "maps", AttentionRecorder: "recorder"}.get(type(source), "recording")


def _live_call(picture: ImageLike | None, prompt: str, seed: int) -> str:
    arguments = [
        "backbone",
        *(["image"] if picture is not None else []),
        f"prompt={json.dumps(prompt, ensure_ascii=False)}",
    ]
    return f"explore({', '.join(arguments)}, seed={seed}"


def _advance(bar: tqdm, done: int, of: int) -> None:
    bar.total = of
    bar.update(done - bar.n)


def _blocks(source: Any) -> dict[str, xr.DataArray]:
    """Recorded maps by block."""
    if isinstance(source, (str, os.PathLike)):
        source = open_recording(source)
    if isinstance(source, AttentionRecorder):
        source = source.recording
    if isinstance(source, Recording):
        return _map_blocks(source)
    if isinstance(source, xr.DataArray):
        return {str(source.name or "maps"): source}
    raise InputError(
        f"expected a backbone, a recorder, a recording, its path or a DataArray, got {type(source).__name__}"
    )


def _map_blocks(recording: Recording) -> dict[str, xr.DataArray]:
    return {name: array for name, array in recording.arrays.items() if name != "masses"}


def _described(atlas: Atlas, pictures: Sequence[PIL.Image.Image]) -> dict[str, Any]:
    """What the front end is told of an atlas, and the settings to begin with."""
    telling = content_words(atlas.words)
    return {
        "axes": atlas.axes,
        "tokens": [vars(token) for token in atlas.tokens],
        "words": [vars(word) for word in atlas.words],
        "pictures": [_data_url(picture) for picture in pictures],
        "token": telling[0],
        "classes": telling,
        **atlas.default(),
    }


def _palette() -> dict[str, list[str]]:
    """Colour maps at 33 places, which a browser blends in between, and the colours of classes."""
    palette = {name: [to_hex(c) for c in matplotlib.colormaps[name](np.linspace(0, 1, 33))] for name in COLOURS}
    return palette | {"classes": [to_hex(colour / 255) for colour in class_colours(24)]}


def _data_url(picture: PIL.Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _netcdf(array: xr.DataArray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "view.nc")
        array.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()
