"""Segment an image or a folder of images into files."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.data import class_list, once
from seg4diff_tools.cli.options import T5, Dtype, Lora, MemoryBudget, ModelName, loaded
from seg4diff_tools.cli.segmentation_flags import FLAGS, refuse_idle, with_options
from seg4diff_tools.errors import InputError


@with_options(FLAGS)
def segment(
    images: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    class_names: Annotated[list[str] | None, typer.Argument(help="Classes, such as: cat grass 'red car'.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file with a class on each line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; NAME-masks by default.")] = None,
    model: ModelName = "mini",
    lora: Lora = None,
    dtype: Dtype = "auto",
    t5: T5 = False,
    memory_budget: MemoryBudget = None,
    *,
    options: dict[str, Any],
) -> None:
    """Segment images into named classes; several GPUs: accelerate launch -m seg4diff_tools segment.

    Writes NAME.png (value i is class i), NAME-overlay.png and NAME.json for each image, and settings.json for all.
    An interrupted run resumes when the same command is given again.
    """
    from seg4diff_tools._runs import as_path, open_run, processes, refuse_other
    from seg4diff_tools.caching import model_settings
    from seg4diff_tools.segmentation.options import OpenVocabulary, option_settings
    from seg4diff_tools.segmentation.segment import check_options, image_list, warn_of_unseen
    from seg4diff_tools.segmentation.workbench import Workbench

    names, chosen = _names(class_names, classes), OpenVocabulary(**options)
    refuse_idle(chosen, names)
    files = [as_path(file) for file in image_list(images)[0]]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"expected an image or a folder, got {missing[0]}, which does not exist: check the path")
    if len({file.stem for file in files}) < len(files):
        same = sorted(file.name for file in files if sum(file.stem == other.stem for other in files) > 1)
        raise InputError(f"expected images of different names, got {', '.join(same[:2])}: rename one of them")
    folder = Path(f"{as_path(images).stem}-masks") if out is None else as_path(out, "out")
    asked = {"class_names": names, "options": option_settings(chosen)}
    refuse_other(folder, asked, "a segmentation")
    with loaded(model, dtype, lora, t5) as backbone:
        check_options(backbone, chosen)
        open_run(folder, model_settings(backbone) | asked, "a segmentation")
        warn_of_unseen(backbone, names, chosen)
        own = files[processes().process_index :: processes().num_processes]
        skipped = _write(Workbench(backbone, memory_budget), own, names, chosen, folder)
    for name, error in skipped.items():
        typer.echo(f"left out {name}: {error}", err=True)
    if processes().is_main_process:
        typer.echo(f"{folder}: NAME.png with indices of classes, NAME-overlay.png, NAME.json, and settings.json")
    if skipped:
        raise typer.Exit(1)


def _write(work: Any, files: list[Path], names: list[str], options: Any, folder: Path) -> dict[str, str]:
    """Write the results of each image that has none yet; return the unreadable images and their errors."""
    import PIL.Image
    from tqdm.auto import tqdm

    from seg4diff_tools._runs import replace_file
    from seg4diff_tools.images import encode, open_images
    from seg4diff_tools.plotting.static import label_overlay
    from seg4diff_tools.segmentation.segment import segment_picture

    skipped = {}
    for file in tqdm(files, unit="image", desc=f"{work.backbone.name} segment"):
        digest, told = hashlib.sha256(file.read_bytes()).hexdigest(), folder / f"{file.stem}.json"
        if told.is_file() and json.loads(told.read_text(encoding="utf-8"))["sha256"] == digest:
            continue
        try:
            (picture,) = open_images(file)
        except InputError as error:
            skipped[file.name] = str(error)
            continue
        work.forget()
        found = segment_picture(work, picture, names, options)
        drawn = encode(PIL.Image.fromarray(label_overlay(found.image, found.label_map)))
        replace_file(folder / f"{file.stem}-overlay.png", drawn)
        replace_file(folder / f"{file.stem}.png", found.index_png())
        # last: an image is done when this file is there
        about = {"image": file.name, "sha256": digest, "shares": found.shares(), "settings": found.settings}
        replace_file(told, json.dumps(about, indent=1).encode())
    return skipped


def _names(words: list[str] | None, file: Path | None) -> list[str]:
    if bool(words) == (file is not None):
        raise InputError(
            f"expected class names or --classes, got {'both' if words else 'neither'}: give names, or a file"
        )
    names = list(words or ()) if file is None else class_list(file)
    if not all(name.strip() for name in names):
        raise InputError(f"expected class names, got {names}: write each one out")
    once(names, "expected each class once")
    if len(names) > 256:
        raise InputError(f"expected at most 256 classes, which an indexed PNG holds, got {len(names)}: use fewer")
    return names
