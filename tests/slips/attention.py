"""Slips in `seg4diff_tools.attention` and `seg4diff_tools.families`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seg4diff_tools import families
from seg4diff_tools.attention import (
    AttentionBias,
    AttentionRecorder,
    Concepts,
    JointTokens,
    ablate,
    apply_edit,
    average,
    blur,
    confine_lora,
    drop,
    encode_concepts,
    intercept,
    lock_layout,
    patch,
    perturbed_guidance,
    place_words,
    record_outputs,
    regional_prompts,
    swap,
    temperature,
    without,
)
from seg4diff_tools.attention.recording import open_recording


def record(**options: Any) -> Callable[[Any], Any]:
    return lambda backbone: AttentionRecorder(backbone, **options)


def enter(manager: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(backbone: Any) -> None:
        with manager(backbone):
            pass

    return call


def biased_by(function: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def call(backbone: Any) -> None:
        with intercept(backbone, bias=function):
            backbone.predict_velocity(torch.zeros(1, *backbone.latent_shape), 500.0, "a cat")

    return call


def outputs_of(backbone: Any) -> Any:
    with record_outputs(backbone) as outputs:
        pass
    return outputs


NARROW = Concepts(("sky",), torch.zeros(1, 7), ((0,),))
LEFT = (0.0, 0.0, 0.5, 1.0)
SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("temperature", enter(lambda backbone: temperature(backbone, 0)), "expected factor, a number above 0, got 0"),
    ("temperature-text", enter(lambda backbone: temperature(backbone, "1.2")), "expected factor, a number above 0"),
    (
        "temperature-above",
        enter(lambda backbone: temperature(backbone, 1.2, above=1200)),
        "expected above, a number from 0 to 1000, got 1200",
    ),
    (
        "temperature-layer",
        enter(lambda backbone: temperature(backbone, 1.2, layers=9)),
        "expected layers from 0 to 4, got 9",
    ),
    ("layer-too-high", record(layers=5), "layers from 0 to 4, got 5"),
    ("layer-text", record(layers="9"), "layers as numbers.*pass layers="),
    ("layer-numpy", record(layers=np.int64(7)), "layers from 0 to 4, got 7"),
    ("layers-empty", record(layers=[]), "layers, at least one"),
    ("layer-float", record(layers=1.5), "layers, a whole number"),
    ("stop-text", record(stop_after="2"), "stop_after, a whole number"),
    ("stop-before-layer", record(layers=3, stop_after=1), "layers up to stop_after=1"),
    ("head-too-high", record(heads=3), "heads from 0 to 2, got 3"),
    ("heads-typo", record(heads="men"), "heads.*pass heads=.mean"),
    ("heads-twice", record(heads=[1, 1]), "heads.*each one once"),
    ("steps-negative", record(steps=-1), "steps 0 or more"),
    ("steps-empty", record(steps=[]), "steps, at least one"),
    ("direction-typo", record(direction="t2j"), "direction.*pass 'i2t'"),
    ("direction-number", record(direction=2), "direction.*pass 'i2t'"),
    ("direction-empty", record(direction=[]), "direction.*pass 'i2t'"),
    ("tokens-bare-word", record(prompt="a cat", tokens="cat"), r"tokens.*pass tokens=\['cat'\]"),
    ("tokens-without-prompt", record(tokens=["cat"]), "a prompt with tokens.*pass prompt="),
    ("words-without-prompt", record(tokens="words"), "a prompt with tokens.*pass prompt="),
    ("tokens-mapping-without-prompt", record(tokens={"cat": "cat"}), "a prompt with tokens.*pass prompt="),
    ("tokens-empty", record(tokens=[]), "tokens, at least one"),
    ("tokens-empty-mapping", record(tokens={}), "tokens, at least one named span"),
    ("tokens-empty-span", record(tokens={"cat": ()}), r"tokens\['cat'\], at least one"),
    ("tokens-mixed", record(prompt="a cat", tokens=["cat", 3]), "tokens.*do not mix"),
    ("tokens-typo", record(prompt="a cat", tokens=["cta"]), "'cta' is not in the prompt.*did you mean 'cat'"),
    ("token-too-high", record(prompt="a cat", tokens=[400]), "tokens from 0 to .*got .400."),
    ("prompt-number", record(prompt=3), "prompt.*pass prompt="),
    ("prompt-empty-list", record(prompt=[]), "prompt.*pass prompt="),
    ("prompt-no-words", record(prompt=""), "a prompt with words.*tokens='all'"),
    ("prompt-bare", lambda b: AttentionRecorder(b.transformer, prompt="a"), "bare transformer.*encode_prompt"),
    ("branches-twice", record(branches=("cond", "cond")), "branches.*pass"),
    ("branches-number", record(branches=2), "branches.*pass"),
    ("budget-text", record(memory_budget="2GB"), "memory_budget, a whole number"),
    ("budget-zero", record(memory_budget=0), "memory_budget 1 or more"),
    ("model-text", lambda b: AttentionRecorder("mini"), "supported transformer, got str.*backbone"),
    ("model-vae", lambda b: AttentionRecorder(b.pipe.vae), "got AutoencoderKL.*Pass"),
    ("edit-text", enter(lambda b: apply_edit(b, "blur", 1)), r"edit.*pass blur\(\)"),
    ("edit-function", enter(lambda b: apply_edit(b, blur, 1)), r"edit.*pass blur\(\)"),
    ("edit-layer", enter(lambda b: apply_edit(b, blur(), 9)), "layers from 0 to 4"),
    ("edit-head", enter(lambda b: apply_edit(b, ablate(), 1, heads=3)), "heads from 0 to 2, got 3"),
    ("edit-tokens", enter(lambda b: apply_edit(b, ablate(), 1, tokens=[2])), "tokens, a JointTokens.*pass JointTokens"),
    ("edit-steps", enter(lambda b: apply_edit(b, ablate(), 1, steps="early")), "steps as numbers"),
    ("edit-branches", enter(lambda b: apply_edit(b, ablate(), 1, branches="prompt")), "branches from cond, uncond"),
    ("ablate-typo", lambda b: ablate("nought"), "to, one of 'zero', 'mean', got 'nought'"),
    ("patch-text", lambda b: patch("a cat"), "outputs, a HeadOutputs.*pass those of record_outputs"),
    ("patch-tokens", lambda b: patch(outputs_of(b), tokens=[1]), "tokens, a JointTokens.*pass JointTokens"),
    ("patch-empty", enter(lambda b: apply_edit(b, patch(outputs_of(b)))), "outputs of a run, got none: run the model"),
    ("outputs-head", enter(lambda b: record_outputs(b, heads=[0, 7])), "heads from 0 to 2, got 7"),
    ("outputs-layer", enter(lambda b: record_outputs(b, "9")), "layers as numbers"),
    ("outputs-budget", enter(lambda b: record_outputs(b, memory_budget="2GB")), "memory_budget, a whole number"),
    ("outputs-model", enter(lambda b: record_outputs("mini")), "supported transformer, got str"),
    ("guidance-heads", enter(lambda b: perturbed_guidance(b, ablate(), 1, 1.0, heads="all")), "heads as numbers"),
    ("blur-sigma", lambda b: blur(0), "sigma, a number above 0"),
    ("blur-kernel", lambda b: blur(kernel=4), "kernel, an odd number"),
    ("drop-word", lambda b: drop("cat"), "tokens as numbers"),
    ("drop-keep", lambda b: drop([1], keep="txt"), "keep.*pass one of them"),
    ("swap-same", lambda b: swap([1], [1]), "without a common token"),
    ("average-empty", lambda b: average([]), "tokens, at least one"),
    ("guidance-scale", enter(lambda b: perturbed_guidance(b, blur(), 1, -1.0)), "scale, a number at least 0"),
    ("guidance-text", enter(lambda b: perturbed_guidance(b, blur(), 1, "2")), "scale, a number at least 0"),
    ("intercept-layer", enter(lambda b: intercept(b, layers="all")), "layers as numbers"),
    ("intercept-number", enter(lambda b: intercept(b, 3)), "on_attention, a function"),
    ("intercept-bias", enter(lambda b: intercept(b, bias=torch.zeros(2, 3))), "bias as a list of AttentionBias"),
    ("bias-text", enter(lambda b: intercept(b, bias="cat")), "bias as a list of AttentionBias"),
    ("bias-layer", enter(lambda b: intercept(b, bias=AttentionBias(1.0, layers=9))), "layers from 0 to 4"),
    ("bias-weight", lambda b: AttentionBias(float("nan")), "weight, a number or one for each key"),
    ("bias-infinite", lambda b: AttentionBias(np.inf), "weight, a number or one for each key"),
    ("bias-keys", lambda b: AttentionBias(1.0, keys=[3]), "keys, a JointTokens.*pass JointTokens"),
    ("bias-branches", lambda b: AttentionBias(1.0, branches="conditional"), "branches from cond, uncond, perturbed"),
    ("bias-function", biased_by(lambda layout, turn: None), "function of biases returns as a list of AttentionBias"),
    ("bias-function-layer", biased_by(lambda layout, turn: AttentionBias(1.0, layers=9)), "layers from 0 to 4, got 9"),
    ("bias-steps", lambda b: AttentionBias(1.0, steps="early"), "steps as numbers"),
    ("joint-tokens-none", lambda b: JointTokens(), "JointTokens with at least one kind"),
    ("joint-tokens-box", lambda b: JointTokens(image=(0.5, 0.0, 0.2, 1.0)), "image, a box"),
    ("joint-tokens-floats", lambda b: JointTokens(image=np.ones((3, 3))), "image, a mask or a box"),
    ("joint-tokens-empty", lambda b: JointTokens(image=np.zeros((3, 3), bool)), "at least one place"),
    ("joint-tokens-word", lambda b: JointTokens(text="cat"), "text as numbers"),
    ("concepts-text", record(direction="c2i", concepts="sky"), "concepts as a list of names"),
    ("concepts-blank", record(direction="c2i", concepts=["..."]), "concepts with letters"),
    ("concepts-twice", lambda b: encode_concepts(b, ["sky", "sky"]), "concepts, each one once"),
    ("concepts-names", enter(lambda b: intercept(b, concepts=["sky"])), "concepts, a Concepts.*pass encode_concepts"),
    ("concepts-width", enter(lambda b: intercept(b, concepts=NARROW)), "concepts of 43 features a token, got 7: pass"),
    ("concepts-unused", record(concepts=["sky"]), "concepts= together with direction"),
    ("concepts-missing", record(direction="i2c"), "concepts= together with direction"),
    ("place-typo", enter(lambda b: place_words(b, "a cat", {"cta": LEFT})), "'cta' is not in the prompt"),
    ("place-list", enter(lambda b: place_words(b, "a cat", ["cat"])), "places as a list of mappings"),
    ("place-pixels", enter(lambda b: place_words(b, "a cat", {"cat": (0, 0, 32, 32)})), r"places\['cat'\], a box"),
    ("place-strength", enter(lambda b: place_words(b, "a cat", {"cat": LEFT}, strength=0)), "strength, a number above"),
    ("place-layer", enter(lambda b: place_words(b, "a cat", {"cat": LEFT}, layers=5)), "layers from 0 to 4"),
    ("place-prompt", enter(lambda b: place_words(b, None, {"cat": LEFT})), "prompt.*pass prompt='a cat'"),
    ("lock-typo", enter(lambda b: lock_layout(b, "a cat", ["dog"], 3)), "'dog' is not in the prompt"),
    ("lock-word", enter(lambda b: lock_layout(b, "a cat", "cat", 3)), "words as a list of names"),
    ("lock-step", enter(lambda b: lock_layout(b, "a cat", ["cat"], -1)), "step 0 or more"),
    ("lock-read", enter(lambda b: lock_layout(b, "a cat", ["cat"], 1, read=[7])), "read from 0 to 4"),
    ("regions-text", enter(lambda b: regional_prompts(b, "a cat")), "regions as a list of mappings"),
    (
        "regions-none",
        enter(lambda b: regional_prompts(b, {})),
        "regions, a mapping with a second prompt for each image",
    ),
    ("regions-pixels", enter(lambda b: regional_prompts(b, {"a cat": (0, 0, 32, 32)})), r"regions\['a cat'\], a box"),
    ("regions-floats", enter(lambda b: regional_prompts(b, {"a cat": np.ones((3, 3))})), "a mask or a box"),
    ("regions-blank", enter(lambda b: regional_prompts(b, {"...": LEFT})), "concepts with letters"),
    ("regions-strength", enter(lambda b: regional_prompts(b, {"a cat": LEFT}, strength="2")), "strength, a finite num"),
    ("regions-infinite", enter(lambda b: regional_prompts(b, {"a cat": LEFT}, strength=np.inf)), "strength, a finite"),
    ("regions-alone", enter(lambda b: regional_prompts(b, {"a cat": LEFT}, alone=1)), "alone, a bool.*pass alone=True"),
    ("regions-kinds", enter(lambda b: regional_prompts(b, {"a cat": LEFT}, kinds="words")), "kinds from start, word"),
    (
        "regions-absent",
        enter(lambda b: regional_prompts(b, {"a cat": LEFT}, kinds="template")),
        "kinds of tokens that 'a cat' has, start, word, end.*got template",
    ),
    ("regions-steps", enter(lambda b: regional_prompts(b, {"a cat": LEFT}, steps="early")), "steps as numbers"),
    ("confine-nothing", enter(lambda b: confine_lora(b, LEFT)), "a model with a LoRA, got one without.*apply_lora"),
    ("without-typo", enter(lambda b: without(b, "pads", prompt="a cat")), "kinds from start, word"),
    ("without-nothing", enter(lambda b: without(b, prompt="a cat")), "kinds from start, word"),
    (
        "without-negatives",
        enter(lambda b: without(b, "pad", prompt="a cat", negative_prompt=["", "ugly"])),
        "negative_prompt, one text",
    ),
    ("without-absent", enter(lambda b: without(b, "template", prompt="a cat")), "kinds of tokens that 'a cat' has"),
    ("register-name", lambda b: families.register("sd3"), "family, a Family, got 'sd3': pass a record"),
    ("open-missing", lambda b: open_recording("~/nowhere/maps.nc"), "there is no file: pass the path"),
]
