"""How the embedded model's transformer was trained further: `python scripts/train_further.py RUN --images 400k`.

Starts from the finished parts of the model in the package and trains the transformer alone, at half of the preset's
rates, on scenes with more colors and more things of one kind, and in part on long lists of names. A run that was
stopped goes on. `pretrain export` and `pretrain report` then make a model of it.
"""

import argparse
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.pretrain import images_of, pin, preset, run_stage
from seg4diff_tools.pretrain.config import Recipe, RunConfig

SCENES = {"twins": 0.2, "triples": 0.4, "colored": 0.5, "recolorable": 0.15}
RECIPE = Recipe(lists=0.4, pool=1 << 16, crowded=0)


def configured(images: int) -> RunConfig:
    """Return the settings of a run of so many images; the rate falls in the last 30 % of them."""
    base = preset("cpu")
    model = replace(base.model, scenes=replace(base.model.scenes, **SCENES), recipe=RECIPE)
    stage, steps = base.transformer, -(-images // base.transformer.batch)
    rates = {"learning_rate": stage.learning_rate / 2, "muon_learning_rate": (stage.muon_learning_rate or 0) / 2}
    return replace(
        base, model=model, transformer=replace(stage, steps=steps, cooldown=max(1, steps * 3 // 10), **rates)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--images", default="400k")
    parser.add_argument("--watch-every", default="50k", help="images between two looks at masks and pictures")
    parser.add_argument("--save-every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--cores", help="CPU cores to pin to, such as 0,1")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.cores:
        pin([int(core) for core in options.cores.split(",")])
    for part in ("clip", "vae", "tokenizer"):
        if not (options.run / part).exists():
            shutil.copytree(MINI / part, options.run / part)
    run_stage(
        "transformer",
        options.run,
        configured(images_of(options.images)),
        init=MINI,
        watch_every=images_of(options.watch_every),
        save_every=options.save_every,
    )


if __name__ == "__main__":
    main()
