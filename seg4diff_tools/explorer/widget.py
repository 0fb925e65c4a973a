"""The viewer of recorded maps: a widget whose Python side holds the maps and sends one setting at a time.

The scripts in `static` draw.
"""

import base64
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import traitlets
import xarray as xr
from jaxtyping import Float
from matplotlib.colors import to_hex

from seg4diff_tools._runs import as_path, replace_file
from seg4diff_tools.errors import InputError, as_names, instance_of, named_extra, one_of, shown
from seg4diff_tools.explorer.maps import AXES, MapSource, quantize
from seg4diff_tools.explorer.page import STORED, module, page, style
from seg4diff_tools.explorer.preview import preview
from seg4diff_tools.explorer.words import content_words, listed
from seg4diff_tools.images import data_url
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.plotting.static import class_colors

with named_extra():
    import anywidget
    import ipywidgets


class SettingError(InputError, traitlets.TraitError):
    """A setting that the maps do not have; the viewer keeps the previous one."""


EXAMPLES = {"token": "'cat'", "beside": "{'layer': 9}", "classes": "['cat', 'grass']", "cell": "[2, 3]"}
"""Settings without a default for all maps."""
COLORS = ("viridis", "magma", "cividis", "gray")
SIDE, CLASSES, OPACITY = 512, 24, 0.5


class Explorer(anywidget.AnyWidget):
    """A viewer of recorded maps, made by `explore`: an ipywidget, for use in an HBox or a tab.

    All attributes can be set and observed.

    Attributes:
        layer, step, head, direction, branch, image, frame, recording: the selection, with the recording's values; None
            for axes that were not recorded. `frame` is a latent frame of a video.
        token: the word or token whose map is shown; the mean of its tokens where it has several, so that "<pads>" is
            one pad on average, not their sum.
        beside: settings of the second panel that differ, such as {"layer": 9}; {} for one panel.
        defaults: settings to omit from a line of code.
        mode: "map", or "masks" for the most attended of `classes` at every position (Seg4Diff, Eq 12).
        classes: the words of the masks.
        cell: row and column of the pinned image token, or None.
        colors: "viridis", "magma", "cividis" or "gray"; all perceptually uniform.
        opacity: of the map over the image, 0 to 1; 0 shows the image alone.
        shared: one scale for both panels.
        pieces: tokens in place of words.
        under: the picture under the map: "step" for the clean image that the model predicted at the step, where it was
            kept; "picture" for the picture itself.
        multiples: axis along which small multiples are shown, "" for none.
    """

    _esm = module()
    _css = style()

    recording, direction, image, frame, branch, layer, step, head = (traitlets.Any().tag(sync=True) for _ in AXES)
    token = traitlets.Unicode().tag(sync=True)
    beside = traitlets.Dict().tag(sync=True)
    mode = traitlets.Enum(("map", "masks"), "map").tag(sync=True)
    classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    cell = traitlets.List(traitlets.Int(), None, minlen=2, maxlen=2, allow_none=True).tag(sync=True)
    colors = traitlets.Enum(COLORS, COLORS[0]).tag(sync=True)
    opacity = traitlets.Float(OPACITY).tag(sync=True)
    shared = traitlets.Bool().tag(sync=True)
    pieces = traitlets.Bool().tag(sync=True)
    under = traitlets.Enum(("step", "picture"), "step").tag(sync=True)
    multiples = traitlets.Unicode("layer").tag(sync=True)
    defaults = traitlets.Dict(
        {
            "mode": "map",
            "colors": COLORS[0],
            "opacity": OPACITY,
            "shared": False,
            "pieces": False,
            "under": "step",
            "multiples": "layer",
        }
    ).tag(sync=True)

    # state of the front end
    axes = traitlets.Dict().tag(sync=True)
    schedule = traitlets.Int().tag(sync=True)
    tokens: traitlets.List = traitlets.List().tag(sync=True)
    words: traitlets.List = traitlets.List().tag(sync=True)
    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    step_pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    palette = traitlets.Dict().tag(sync=True)
    sentence = traitlets.Unicode().tag(sync=True)
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
        "colors",
        "opacity",
        "shared",
        "pieces",
        "under",
        "multiples",
    )
    TOLD = ("pictures", "step_pictures", "palette", "call", "defaults", "schedule", "sentence")
    """Content of a page other than the settings and the maps."""

    def __init__(
        self,
        atlas: MapSource,
        pictures: Sequence[PIL.Image.Image],
        call: str,
        store: int,
        drafts: Sequence[PIL.Image.Image] = (),
        **settings: Any,
    ):
        self.check_names(settings)
        self._atlas, self._store = atlas, as_int(store, "store", 0)
        # the width is shared with neighbors in an HBox
        layout = ipywidgets.Layout(width="100%")
        super().__init__(
            layout=layout, call=call, palette=_palette(), **(described(atlas, pictures, drafts) | settings)
        )
        self.on_msg(self._answer)

    @classmethod
    def check_names(cls, settings: Iterable[str]) -> None:
        """Raise an InputError for a name that is no setting."""
        if unknown := [str(name) for name in settings if name not in cls.SETTINGS]:
            raise InputError(f"expected settings from {', '.join(cls.SETTINGS)}, got {', '.join(unknown)}: use these")

    def __setattr__(self, name: str, value: Any) -> None:
        """Raise a SettingError for a value of another type, and for a name that is no attribute."""
        if not name.startswith("_") and not hasattr(type(self), name):
            self.check_names([name])
        try:
            super().__setattr__(name, value)
        except SettingError:
            raise
        except traitlets.TraitError as error:
            trait = self.traits()[name]
            example = EXAMPLES.get(name, repr(trait.default_value))
            raise SettingError(f"expected {name}, {trait.info()}, got {shown(value)}: pass {name}={example}") from error

    @traitlets.validate(*AXES, "token", "classes", "beside", "multiples", "cell", "opacity")
    def _check(self, proposal: dict) -> Any:
        try:
            return self._checked(proposal["trait"].name, proposal["value"])
        except InputError as error:
            # traitlets restores the previous value on an error of this class
            raise SettingError(str(error)) from None

    def _checked(self, name: str, value: Any) -> Any:
        """Return a setting in the atlas's form."""
        if name in AXES:
            return self._atlas.check(name, value)
        if name == "opacity":
            return as_float(value, name, 0.0, 1.0)
        if name == "token":
            return self._atlas.find(value).label
        if name == "classes":
            return [self._atlas.find(label).label for label in as_names(value, name, empty=True)]
        if name == "beside":
            instance_of(value, Mapping, name, f"{name}={EXAMPLES[name]}")
            if len(value) > 1 or set(value) - set(AXES):
                raise InputError(
                    f"expected beside with at most one of {', '.join(AXES)}, got {value}: pass beside={{'layer': 9}}"
                )
            return {axis: self._atlas.check(axis, one) for axis, one in value.items()}
        if name == "multiples" and value not in ("", *AXES):
            raise InputError(f"expected multiples from {', '.join(AXES)}, got {value!r}: pass one, or multiples=''")
        if (
            name == "cell"
            and value
            and not all(0 <= at < most for at, most in zip(value, self._atlas.grid, strict=True))
        ):
            raise InputError(
                f"expected cell as row and column of one of {self._atlas.grid} image tokens, got {value}: pass "
                "cell=[0, 0]"
            )
        return value

    @property
    def selection(self) -> dict[str, Any]:
        """The value of each axis; that of the second panel is `selection | beside`."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def data(self) -> xr.DataArray:
        """The shown maps, unquantized: [y x] of the word or, with masks, [class y x] of the classes.

        With a second panel, both, along an axis with the name of the differing setting. `attrs` has the settings.
        """
        return self.data_at()

    def data_at(self, **settings: Any) -> xr.DataArray:
        """Return the maps of other settings in the form of `data`; the view stays as it is.

        Args:
            settings: attributes that differ, such as layer=9 or mode="masks"; those that choose no map have no effect.

        Raises:
            InputError: a setting that the maps do not have.
        """
        self.check_names(settings)
        kept = {name: getattr(self, name) for name in ("token", "classes", "mode", "beside")}
        one_of(settings.get("mode", self.mode), "mode", ("map", "masks"))
        wanted = kept | self.selection | {name: self._checked(name, value) for name, value in settings.items()}
        selection, beside = {axis: wanted[axis] for axis in AXES}, wanted["beside"]
        labels = wanted["classes"] if wanted["mode"] == "masks" else [wanted["token"]]
        panels = [selection, *([selection | beside] if beside else [])]
        values = np.stack([[self._atlas.word_map(panel, label) for label in labels] for panel in panels])
        values = values.reshape(len(panels), len(labels), *self._atlas.grid)
        found = xr.DataArray(values, {"class": labels}, ("panel", "class", "y", "x"), name="attention")
        for axis in beside:
            shown = [panel[axis] for panel in panels]
            # keep types: "mean" beside head 2, not beside "2"
            mixed = len({isinstance(value, str) for value in shown}) > 1
            found = found.rename(panel=axis).assign_coords({axis: np.array(shown, dtype=object if mixed else None)})
        found.attrs = {axis: value for axis, value in selection.items() if value is not None and axis not in beside}
        if wanted["mode"] == "map":
            found.attrs["token"] = wanted["token"]
            found = found.isel({"class": 0}, drop=True)
        return found if beside else found.isel(panel=0)

    def stored(self, limit: int | None = None) -> dict[str, Any]:
        """Return the content of a page that shows this view without Python; see `MapSource.stored`.

        Args:
            limit: of the maps, in characters; None for `store` of `explore`.
        """
        limit = self._store if limit is None else as_int(limit, "limit", 0)
        told = {name: getattr(self, name) for name in (*self.SETTINGS, *self.TOLD)}
        kept = self._atlas.stored(limit, self.selection, *([self.selection | self.beside] if self.beside else []))
        labels = {word["label"] for word in (*kept["words"], *kept["tokens"])}
        group = {
            self._atlas.tokens[i].label: word.label for word in self._atlas.words for i in word.tokens
        }  # a page keeps only the mean of padding
        told["token"] = self.token if self.token in labels else group[self.token]
        told["classes"] = list(dict.fromkeys(name if name in labels else group[name] for name in self.classes))
        if len(self.pictures) > 1:
            chosen = product(kept["axes"]["image"], kept["axes"]["frame"])
            told["pictures"] = [self.pictures[self._picture_at(*one)] for one in chosen]
        if self.step_pictures:
            told["step_pictures"] = [self.step_pictures[self.axes["step"].index(one)] for one in kept["axes"]["step"]]
        if self.cell:
            told["cell"] = [
                at * now // before
                for at, now, before in zip(self.cell, kept["shape"][1:], self._atlas.grid, strict=True)
            ]
        return told | kept

    def save_html(self, path: str | os.PathLike, store: int = 1 << 23) -> Path:
        """Write the view as a page in one file, for use without Python or network.

        An address such as "view.html#layer=4&step=20&token=cat" opens the page with these settings; its button "Copy
        link" gives the address of what is shown.

        Args:
            path: of the page; "~" is expanded.
            store: characters of maps that the page keeps; 8 MiB hold all steps of one full-size recording.

        Raises:
            InputError: an invalid path or number of characters.
            CheckpointError: the file cannot be written.
        """
        path, store = as_path(path), as_int(store, "store", 0)
        replace_file(path, page(self.stored(store), f"Attention to {self.token!r}").encode())
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle and self._store:
            bundle[0][STORED] = self.stored()
            bundle[0]["image/png"] = base64.b64encode(self._preview()).decode()
        return bundle

    def _picture_at(self, image: Any, frame: Any) -> int:
        """Return the place of a picture among several: images in order, the frames of each together."""
        frames = self.axes["frame"]
        return self.axes["image"].index(image) * len(frames) + frames.index(frame)

    def _preview(self) -> bytes:
        """Return the first panel as a picture, for a notebook whose cells have not run."""
        picture = None
        if self.pictures:
            url = self.pictures[self._picture_at(self.image, self.frame) if len(self.pictures) > 1 else 0]
            if self.step_pictures and self.under == "step":
                url = self.step_pictures[self.axes["step"].index(self.step)]
            picture = PIL.Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
        return preview(picture, self.data.isel(dict.fromkeys(self.beside, 0)).values, self.opacity)

    def __repr__(self) -> str:
        return f"Explorer(layer={self.layer}, step={self.step}, head={self.head!r}, token={self.token!r})"

    def _answer(self, _: Any, question: dict, buffers: list) -> None:
        """Answer a request of the front end; every answer includes its request."""
        try:
            if question["ask"] == "slice":
                self._send_maps(question, self._atlas.maps(question["selection"]))
            elif question["ask"] == "along":
                maps = self._atlas.along(question["axis"], question["selection"], question["tokens"])
                self._send_maps(question, maps)
            elif question["ask"] == "file":
                self.send({"question": question}, [_netcdf(self.data)])
        except Exception as error:  # noqa: BLE001 - the front end waits for an answer
            self.send({"question": question, "error": str(error) or type(error).__name__})

    def _send_maps(self, question: dict, maps: Float[np.ndarray, "map y x"]) -> None:
        self.send({"question": question, "shape": maps.shape}, [quantize(maps).content])


def described(
    atlas: MapSource, pictures: Sequence[PIL.Image.Image], drafts: Sequence[PIL.Image.Image] = ()
) -> dict[str, Any]:
    """Return the front end's description of an atlas, and the initial settings."""
    # as many as there are colors
    telling = content_words(atlas.words)[:CLASSES]
    return {
        "axes": atlas.axes,
        "schedule": atlas.schedule,
        "sentence": atlas.sentence,
        "tokens": listed(atlas.tokens),
        "words": listed(atlas.words),
        "pictures": [_data_url(picture) for picture in pictures],
        "step_pictures": [_data_url(picture, SIDE // 2) for picture in drafts],
        "token": telling[0],
        "classes": telling,
        **atlas.default(),
    }


def _palette() -> dict[str, list[str]]:
    """Return color maps at 33 points, which a browser interpolates, and the colors of classes."""
    palette = {name: [to_hex(c) for c in matplotlib.colormaps[name](np.linspace(0, 1, 33))] for name in COLORS}
    return palette | {"classes": [to_hex(color / 255) for color in class_colors(CLASSES)]}


def _data_url(picture: PIL.Image.Image, side: int = SIDE) -> str:
    return data_url(picture, "JPEG", side, quality=92, subsampling=0)


def _netcdf(array: xr.DataArray) -> bytes:
    # in a file, numbers among words become words
    array = array.assign_coords({n: c.astype(str) for n, c in array.coords.items() if c.dtype == object})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "view.nc")
        array.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()
