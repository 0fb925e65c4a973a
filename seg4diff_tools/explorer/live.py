"""Explorer of a live model: its attention on a given or generated picture."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import PIL.Image
import torch
import traitlets
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import Recording
from seg4diff_tools.attention.request import RECORDED
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.sampling import draw_noise
from seg4diff_tools.errors import InputError, one_of, some_of
from seg4diff_tools.explorer.maps import AXES, MapSource, check_directions
from seg4diff_tools.explorer.widget import CLASSES, Explorer, described
from seg4diff_tools.explorer.words import content_words, told_phrases
from seg4diff_tools.families import model_lock
from seg4diff_tools.images import ImageLike, open_image
from seg4diff_tools.indices import as_indices, as_int

STEPS = 28
"""Default length of the schedule."""


class LiveExplorer(Explorer):
    """An explorer of a live model, which is recorded again when prompt, seed or picture change.

    Attributes:
        prompt: of the model.
        seed: of the noise.
        picture: the input picture; None to generate one.
        progress: of the recording, 0 to 1.
    """

    prompt = traitlets.Unicode().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    progress = traitlets.Float(1.0).tag(sync=True)
    picture = traitlets.Any()
    # defined even if construction fails, for `close`
    _cancelled = traitlets.Instance(threading.Event, ())
    _ended = traitlets.Bool()

    def __init__(
        self,
        backbone: Backbone,
        picture: ImageLike | None,
        prompt: str,
        seed: int,
        steps: int,
        options: Mapping[str, Any],
        store: int,
        *,
        step_pictures: bool = False,
        phrases: Sequence[str] = (),
        **settings: Any,
    ):
        seed, steps, store = as_int(seed, "seed", 0), as_int(steps, "steps", 1, 1000), as_int(store, "store", 0)
        # generation needs all layers: no forward may stop early
        known = [name for name in signature(AttentionRecorder).parameters if name not in ("model", "stop_after")]
        for name in options:
            one_of(name, "keys of record", known, "arguments of AttentionRecorder, such as record={'layers': [9]}")
        check_directions(some_of(options.get("direction", "i2t"), "direction", RECORDED))
        if (chosen := options.get("steps")) is not None:
            options = {**options, "steps": as_indices(chosen, "steps of record", steps)}
        self._recipe = backbone, steps, options, step_pictures
        self._phrases = phrases
        self._thread: threading.Thread | None = None
        with tqdm(desc="recording", unit="step", leave=False) as bar:

            def advance(done: int, of: int) -> None:
                bar.total = of
                bar.update(done - bar.n)

            recording, shown, drafts = record_live(*self._recipe, picture, prompt, seed, advance)
        atlas = self._source(recording)
        if backbone.expert_layer in atlas.axes["layer"]:
            settings = {"layer": backbone.expert_layer} | settings
        super().__init__(atlas, [shown], self._code(picture, prompt, seed), store, drafts, **settings)
        self.picture, self.prompt, self.seed = picture, prompt, seed
        self.observe(self._record_again, ["prompt", "seed", "picture"])

    def wait(self) -> None:
        """Wait for the background recording to end."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Cancel the background recording after its current step; the maps stay unchanged."""
        self._cancelled.set()

    def close(self) -> None:
        """Cancel the background recording and close the widget."""
        self._ended = True
        self.cancel()
        super().close()

    def _answer(self, _: Any, question: dict, buffers: list) -> None:
        if question["ask"] == "cancel":
            self.cancel()
        elif question["ask"] == "record":
            self._record_again(None)
        else:
            super()._answer(_, question, buffers)

    def _code(self, picture: ImageLike | None, prompt: str, seed: int) -> str:
        """Return the line of code for this view, up to the settings: arguments that are not the defaults."""
        arguments = [
            "backbone",
            *(["image"] if picture is not None else []),
            f"prompt={json.dumps(prompt, ensure_ascii=False)}",
        ]
        backbone, steps, options, step_pictures = self._recipe
        usual = picture is None and samples_straight(backbone)
        told = [
            *([f"steps={steps}"] if steps != STEPS else []),
            *([f"record={dict(options)!r}"] if options else []),
            *([f"step_pictures={step_pictures}"] if step_pictures != usual else []),
        ]
        return f"explore({', '.join([*arguments, f'seed={seed}', *told])}{told_phrases(self._phrases)}"

    def _source(self, recording: Recording) -> MapSource:
        return MapSource({"live": recording.map_blocks}, self._phrases, self._recipe[1])

    def _record_again(self, change: object) -> None:
        if self._ended:
            return
        self.cancel()
        self._cancelled = threading.Event()
        arguments = self._cancelled, self.picture, self.prompt, self.seed
        self._thread = threading.Thread(target=self._record, args=arguments, daemon=True)
        self._thread.start()

    def _record(self, cancelled: threading.Event, picture: ImageLike | None, prompt: str, seed: int) -> None:
        def report(done: int, of: int) -> None:
            if cancelled.is_set() and done < of:
                raise _CancelledError
            self.progress = done / of

        with self._turn(cancelled):
            try:
                report(0, 1)
                self.message = ""
                recording, shown, drafts = record_live(*self._recipe, picture, prompt, seed, report)
                self._replace(self._source(recording), [shown], drafts)
                self.call = self._code(picture, prompt, seed)
            except _CancelledError:
                if cancelled is self._cancelled:
                    self.message = "Stopped: the maps are those from before."
            except Exception as error:  # noqa: BLE001 - exceptions of a thread are not shown
                self.message = str(error) or type(error).__name__
            finally:
                if cancelled is self._cancelled:
                    self.progress = 1.0

    @contextmanager
    def _turn(self, cancelled: threading.Event) -> Iterator[None]:
        """Wait until no one else runs or records the model, or until this recording is cancelled."""
        turn = model_lock(self._recipe[0])
        while not turn.acquire(timeout=0.05):
            if cancelled.is_set():
                break
        else:
            try:
                yield
            finally:
                turn.release()
            return
        # the recording stops at once
        yield

    def _replace(
        self, atlas: MapSource, pictures: Sequence[PIL.Image.Image], drafts: Sequence[PIL.Image.Image]
    ) -> None:
        """Show other maps, and keep the settings that are still valid."""
        told = described(atlas, pictures, drafts)
        before = content_words(self._atlas.words)[:CLASSES]
        with self.hold_sync(), self.hold_trait_notifications():
            self._atlas = atlas
            now = {name: getattr(self, name) for name in (*AXES, "token", "classes", "beside", "cell")}
            labels = {word.label for word in (*atlas.words, *atlas.tokens)}
            kept = {axis: now[axis] for axis in AXES if now[axis] in atlas.axes[axis]}
            kept |= {"token": now["token"]} if now["token"] in labels else {}
            # removed classes stay removed, added ones stay; new words are included
            usual = [name for name in told["classes"] if name not in before or name in now["classes"]]
            added = [name for name in now["classes"] if name not in before and name in labels and name not in usual]
            if classes := [*usual, *added]:
                kept["classes"] = classes
            possible = all(value in atlas.axes[axis] for axis, value in now["beside"].items())
            inside = now["cell"] and all(at < most for at, most in zip(now["cell"], atlas.grid, strict=True))
            kept |= {"beside": now["beside"] if possible else {}, "cell": now["cell"] if inside else None}
            for name, value in (told | kept).items():
                setattr(self, name, value)
            self.revision += 1


def samples_straight(backbone: Backbone) -> bool:
    """Return whether each step of sampling leads straight to the clean image that is predicted, as Euler's does."""
    scheduler = backbone.pipe.scheduler
    euler = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return euler and not scheduler.config.get("stochastic_sampling", False)


class _CancelledError(Exception):
    """Raised to stop a cancelled recording."""


def record_live(
    backbone: Backbone,
    steps: int,
    options: Mapping[str, Any],
    step_pictures: bool,
    picture: ImageLike | None,
    prompt: str,
    seed: int,
    report: Callable[[int, int], None],
) -> tuple[Recording, PIL.Image.Image, list[PIL.Image.Image]]:
    """Record a backbone on a picture, or while it generates one.

    Args:
        backbone: the model.
        steps: length of the schedule.
        options: arguments of `AttentionRecorder`. By default all layers and steps, the mean of heads and every token;
            padding is omitted if there are more tokens than CLIP's 77.
        step_pictures: decode the clean image that the model predicts at each recorded step.
        picture: the input, with the noise of each wanted step; None to generate one.
        prompt: of the model.
        seed: of the noise.
        report: called after each step with the numbers of finished and of all steps; may raise to stop.

    Returns:
        The recording, its steps counted from the start of the schedule; the picture; and the predicted pictures.

    Raises:
        InputError: step_pictures of a generated picture with a scheduler that is not `samples_straight`.
    """
    if step_pictures and picture is None and not samples_straight(backbone):
        raise InputError(
            f"expected step_pictures of a generated picture with FlowMatchEulerDiscreteScheduler, whose steps lead "
            f"straight to what is predicted, got {type(backbone.pipe.scheduler).__name__}: pass step_pictures=False"
        )
    encoded = backbone.encode_prompt(prompt)
    read = encoded.indices("start", "word", "end", "template")
    tokens = encoded.indices("start", "word", "end", "template", "pad")
    options = {"prompt": encoded, "tokens": tokens if len(tokens) <= 77 else read, **options}
    wanted = sorted(options.get("steps") or range(steps))
    if picture is None:
        path = [draw_noise([seed], backbone.latent_size()).to(backbone.device)]

        def after(step: int, timestep: float, latents: Tensor) -> None:
            if step_pictures:
                path.append(backbone.family.unpack(latents, backbone.token_grid()))
            report(step + 1, steps)

        with AttentionRecorder(backbone, **options) as recorder:
            (drawn,) = backbone.generate(encoded, steps=steps, seed=seed, progress=False, callback=after)
        clean = [_predicted(backbone, path, step) for step in wanted] if step_pictures else []
        return recorder.recording, drawn, backbone.decode(torch.cat(clean)) if clean else []
    options.pop("steps", None)
    shown = open_image(picture)
    latents = backbone.encode_image(shown)
    drafts: list[PIL.Image.Image] = []
    with AttentionRecorder(backbone, **options) as recorder:
        for done, step in enumerate(wanted, start=1):
            noisy, timestep = backbone.add_noise(latents, steps - step, steps, seed)
            velocity = backbone.predict_velocity(noisy, timestep, encoded)
            if step_pictures:
                sigma = float(backbone.schedule(steps)[1][step])
                drafts += backbone.decode(noisy.float() - sigma * velocity.float())
            report(done, len(wanted))
    arrays = {name: array.assign_coords(step=wanted) for name, array in recorder.recording.arrays.items()}
    return Recording(arrays), shown, drafts


def _predicted(backbone: Backbone, path: Sequence[Tensor], step: int) -> Float[Tensor, "1 channels height width"]:
    """Return the clean latents that a 0-based step of sampling predicts, at the end of its straight line from noise.

    `path` has the noise, then the latents after each step.
    """
    sigmas = [*backbone.schedule(len(path) - 1)[1].tolist(), 0.0]
    before, after = path[step].float(), path[step + 1].float()
    return after + sigmas[step + 1] / (sigmas[step] - sigmas[step + 1]) * (after - before)
