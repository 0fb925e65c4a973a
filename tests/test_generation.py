"""Pictures for benchmarks: names as their judges expect, the same in every run, errors that name the line."""

import json
import os
import subprocess

import numpy as np
import pytest
from conftest import TWO_PROCESSES
from PIL import Image
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app
from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.generation.benchmarks import generate_benchmark, read_prompts

QUICK = {"steps": 2, "guidance_scale": 1.0, "progress": False}
TEXTS = ["a cat", "a red car", "a dog"]


@pytest.fixture
def geneval(tmp_path):
    lines = [{"tag": "single_object", "include": [{"class": "x", "count": 1}], "prompt": text} for text in TEXTS]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def t2i(tmp_path):
    path = tmp_path / "color_val.txt"
    path.write_text("a cat\n\na red car\tattribute\na cat\n")
    return path


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_geneval_layout(tiny_backbone, geneval, tmp_path):
    out = generate_benchmark(tiny_backbone, "geneval", geneval, tmp_path / "out", batch=3, **QUICK)
    names = [
        f"{n:05d}/{name}" for n in range(3) for name in ["metadata.jsonl", *(f"samples/{k:04d}.png" for k in range(4))]
    ]
    assert files(out) == [*names, "settings.json"]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == json.loads(geneval.read_text().split("\n")[1])
    # picture 2 of prompt 1 starts from seed 2, in whichever batch
    (alone,) = tiny_backbone.generate("a red car", seed=2, **QUICK)
    assert np.abs(pixels(out / "00001" / "samples" / "0002.png") - np.asarray(alone)).max() <= 1


def test_t2i_compbench_layout(tiny_backbone, t2i, tmp_path):
    out = generate_benchmark(tiny_backbone, "t2i-compbench", t2i, tmp_path / "out", images=2, seed=5, **QUICK)
    prompts = ["a cat", "a cat", "a red car", "a red car", "a cat", "a cat"]
    names = [f"samples/{prompt}_{number:06d}.png" for number, prompt in enumerate(prompts)]
    assert files(out) == [*sorted(names), "settings.json"]
    # the same prompt starts from the same noise
    assert np.abs(pixels(out / names[0]) - pixels(out / names[4])).max() <= 1
    (alone,) = tiny_backbone.generate("a red car", seed=6, **QUICK)
    assert np.abs(pixels(out / names[3]) - np.asarray(alone)).max() <= 1


def test_a_stopped_run_goes_on(tiny_backbone, geneval, tmp_path):
    def run(**changed):
        return generate_benchmark(
            tiny_backbone, "geneval", geneval, tmp_path / "out", **({"images": 2} | QUICK | changed)
        )

    samples = [run() / f"{n:05d}" / "samples" / f"{k:04d}.png" for n in range(3) for k in range(2)]
    before = [path.read_bytes() for path in samples]
    samples[1].unlink()
    samples[2].write_bytes(before[2][:100])
    (samples[3].parent / "0001.partial").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in samples[3:]}
    run()
    for path, content in zip(samples, before, strict=True):
        assert np.abs(pixels(path).ravel() - pixels_of(content).ravel()).max() <= 1
    assert {path: path.stat().st_mtime_ns for path in samples[3:]} == kept
    with pytest.raises(InputError, match=r"seed: 0 there, 1 now\): choose another folder"):
        run(seed=1)
    with pytest.raises(InputError, match=r"guidance_scale: 1.0 there, 7.5 now"):
        run(guidance_scale=None)


def pixels_of(content: bytes) -> np.ndarray:
    import io

    return pixels(io.BytesIO(content))


def test_two_processes_share_the_prompts(tiny_folder, tiny_backbone, geneval, tmp_path):
    command = ["-m", "seg4diff_tools", "generate", "--model", str(tiny_folder), "--layout", "geneval", "--steps", "2"]
    command += ["--prompts", str(geneval), "--out", str(tmp_path / "two"), "--images", "1", "--guidance-scale", "1"]
    run = subprocess.run(
        [*TWO_PROCESSES, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("now judge it") == 1
    one = generate_benchmark(tiny_backbone, "geneval", geneval, tmp_path / "one", images=1, **QUICK)
    assert files(tmp_path / "two") == files(one)
    for name in files(one):
        if name.endswith(".png"):
            assert np.abs(pixels(one / name) - pixels(tmp_path / "two" / name)).max() <= 1


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("geneval", '{"prompt": "a cat"}\n{"prompt": "a', r"line 2 of .* is not JSON"),
        ("geneval", '{"prompt": "a cat"}\n\n["a dog"]', r'with "prompt" in line 3 of .*, got \["a dog"\]'),
        ("geneval", '{"prompt": ""}', r'with "prompt" in line 1'),
        ("geneval", "\n \n", "got an empty file"),
        ("t2i-compbench", "a cat\na cat/dog", r"a file's name, .* in line 2 of .*, got 'a cat/dog'"),
        ("t2i-compbench", "a_cat", "in line 1 of"),
        ("t2i-compbench", "cat " * 100, "in line 1 of"),
    ],
)
def test_broken_prompts_are_named_by_line(tmp_path, layout, content, message):
    (tmp_path / "prompts").write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "prompts", layout)


def test_other_bad_input_is_one_clear_error(tiny_backbone, geneval, tmp_path):
    with pytest.raises(InputError, match=r"expected a text file of prompts, got .*nowhere"):
        read_prompts(tmp_path / "nowhere", "geneval")
    (tmp_path / "long.jsonl").write_text(geneval.read_text() + json.dumps({"prompt": "cat " * 90}))
    with pytest.raises(PromptError, match=r"line 4 of .*long\.jsonl: "):
        generate_benchmark(tiny_backbone, "geneval", tmp_path / "long.jsonl", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="images 1 or more, got 0"):
        generate_benchmark(tiny_backbone, "geneval", geneval, tmp_path / "out", images=0, **QUICK)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match="expected an empty folder or that of a benchmark's pictures"):
        generate_benchmark(tiny_backbone, "geneval", geneval, tmp_path / "other", **QUICK)


def test_command_with_a_lora(tiny_folder, tiny_backbone, t2i, tmp_path):
    from seg4diff_tools.backbones.lora import attach, trained
    from seg4diff_tools.backbones.lora_files import save_lora

    transformer = tiny_backbone.transformer
    attach(transformer, tiny_backbone.family, rank=2, alpha=2)
    try:
        for name, value in transformer.named_parameters():
            if ".lora_B." in name:
                value.data.fill_(0.5)
        save_lora(trained(transformer, 2), tmp_path / "lora")
    finally:
        transformer.unload_lora()
        transformer.requires_grad_(False).eval()
    words = [
        "generate",
        "--model",
        tiny_folder,
        "--layout",
        "t2i-compbench",
        "--prompts",
        t2i,
        "--images",
        1,
        "--steps",
        2,
    ]
    plain = [*words, "--guidance-scale", 1, "--out", tmp_path / "plain"]
    tuned = [*words, "--guidance-scale", 1, "--out", tmp_path / "tuned", "--lora", tmp_path / "lora"]
    for each in (plain, tuned):
        result = CliRunner().invoke(app, list(map(str, each)))
        assert result.exit_code == 0, result.output
    name = "samples/a cat_000000.png"
    assert (pixels(tmp_path / "plain" / name) != pixels(tmp_path / "tuned" / name)).any()
    # pictures with and without the LoRA are not mixed
    again = CliRunner().invoke(
        app, [str(tmp_path / "tuned") if word == tmp_path / "plain" else str(word) for word in plain]
    )
    assert again.exit_code == 2
    assert "weights: " in again.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--prompts": "{tmp}/nowhere.txt"}, "nowhere.txt' does not exist"),
        ({"--lora": "{tmp}/nowhere"}, "expected LoRA weights in"),
        ({"--model": "{tmp}/nowhere"}, "no model folder"),
    ],
)
def test_an_error_is_one_line(tiny_folder, t2i, tmp_path, changed, message):
    options = {"--model": tiny_folder, "--layout": "t2i-compbench", "--prompts": t2i, "--out": tmp_path / "out"}
    options |= {option: value.format(tmp=tmp_path) for option, value in changed.items()}
    result = CliRunner().invoke(app, ["generate", *(str(word) for option in options.items() for word in option)])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    for layout, line in (("t2i-compbench", "a café"), ("geneval", '{"prompt": "a café"}')):
        (tmp_path / "prompts").write_text(line + "\n", encoding="utf-8-sig")
        assert [prompt.text for prompt in read_prompts(str(tmp_path / "prompts"), layout)] == ["a café"]
