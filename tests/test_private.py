"""Private names of libraries: each one that is touched has a test that says what breaks without it; no other module
touches any."""

import ast
import copy
import re
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import tiny_pipeline
from diffusers.guiders import AdaptiveProjectedMixGuidance
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_dispatch import attention_backend
from tiny_models import build
from torch import nn

from seg4diff_tools.backbones import wrap_pipeline
from seg4diff_tools.families import _private

PACKAGE = Path(_private.__file__).parents[1]
LIBRARIES = ("accelerate", "diffusers", "peft", "torch", "transformers")
# a key of a file, which diffusers documents, and the end of names of fields
PUBLIC = {"_class_name", "_weight"}
TESTED: set[str] = set()


def touches(*names: str, breaks: str) -> Callable[[Callable], Callable]:
    """Register the test of private names; when it fails, it says what breaks in this package.

    Args:
        names: as they stand in `_private.py`.
        breaks: what no longer works.
    """
    TESTED.update(names)

    def decorate(test: Callable) -> Callable:
        @wraps(test)
        def told(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except (AssertionError, AttributeError, ImportError, KeyError, RuntimeError, TypeError) as error:
                raise AssertionError(f"{' and '.join(names)} changed, so that {breaks}: {error}") from error

        return told

    return decorate


@touches("_orig_mod", breaks="compiled transformers are of an unknown architecture")
def test_a_compiled_module_keeps_the_one_inside():
    module = nn.Linear(2, 3)
    compiled = torch.compile(module, backend="eager")
    assert compiled is not module
    assert _private.unwrapped(compiled) is _private.unwrapped(module) is module


@touches("torch._dynamo", breaks="compiled code skips hooks, and recordings stay empty without a word")
def test_compiled_modules_run_eagerly():
    module, seen = nn.Linear(2, 3), []
    compiled = torch.compile(module, backend="eager")
    compiled(torch.ones(1, 2))
    remove = _private.add_hook(module, lambda *_: seen.append(torch.compiler.is_compiling()))
    with _private.uncompiled():
        compiled(torch.ones(1, 2))
    remove()
    assert seen == [False]


CALLS = {
    "sd3": ({"guidance_scale": 5.0}, 5.0),
    "flux-dev": ({"true_cfg_scale": 3.0, "negative_prompt": "dog"}, 3.0),
    "chroma": ({"guidance_scale": 2.5}, 2.5),
    "qwen-image": ({"true_cfg_scale": 3.0, "negative_prompt": "dog"}, 3.0),
    "z-image": ({"guidance_scale": 2.0}, 2.0),
    "hunyuan-image": ({}, 3.5),
}


@pytest.mark.parametrize("name", CALLS)
@touches(
    *("_getframe", "_enabled"),
    breaks="recordings cannot tell branches of guidance apart, and perturbed guidance has a wrong weight",
)
def test_the_sampling_loop_of_a_pipeline_is_found(name):
    pipe, found = build(name), []
    pipe.set_progress_bar_config(disable=True)
    if "guider" in pipe.components:
        pipe.guider = AdaptiveProjectedMixGuidance(guidance_scale=3.5)
    arguments, weight = CALLS[name]
    remove = _private.add_hook(pipe.transformer, lambda module, *_: found.append(_private.sampling_loop(module)))
    side = wrap_pipeline(pipe).token_px * 4
    pipe("a cat", num_inference_steps=2, height=side, width=side, output_type="latent", **arguments)
    remove()
    assert {(loop.weight, loop.perturbed, loop.steps, loop.prompt) for loop in found} == {(weight, False, 2, "a cat")}
    assert _private.sampling_loop(pipe.transformer) is None


@touches("_current_frames", breaks="a thread cannot tell a model that computes from one that is only held")
def test_a_thread_that_computes_is_told_from_one_that_waits():
    inside, go = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        inside.set()
        go.wait(30)

    module = nn.Linear(2, 3)
    module.register_forward_hook(wait)
    for run, computing in ((lambda: module(torch.ones(1, 2)), True), (wait, False)):
        inside.clear()
        go.clear()
        thread = threading.Thread(target=run)
        thread.start()
        assert inside.wait(30)
        assert _private.is_computing(thread.ident) is computing
        go.set()
        thread.join()


@touches(
    *("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks_with_kwargs",
    breaks="copies and saved files of a model that is recorded carry the recorder's hooks",
)
def test_copies_carry_no_hooks():
    module = nn.Linear(2, 3)
    module.register_forward_hook(print)
    before = dict(vars(copy.deepcopy(module)))
    removers = [
        _private.add_hook(module, repr, with_kwargs=True, always_call=True),
        _private.add_hook(module, repr, before=True, with_kwargs=True),
    ]
    assert [len(vars(module)[name]) for name in (*_private._HOOKS, *_private._HOOK_FLAGS)] == [2, 1, 1, 1, 1]
    copied = vars(copy.deepcopy(module))
    assert copied.keys() == before.keys()
    assert {key for key in copied if "hook" in key and copied[key]} == {"_forward_hooks"}
    assert list(copied["_forward_hooks"].values()) == [print]
    for remove in removers:
        remove()
    assert vars(module).keys() == before.keys()


@touches("_forward_hooks", "_forward_pre_hooks", breaks="a run is resumed although other hooks change its model")
def test_hooks_of_a_module_are_listed():
    module = nn.Linear(2, 3)
    module.register_forward_hook(print)
    module.register_forward_pre_hook(repr)
    assert _private.forward_hooks(module) == [repr, print]


@touches("_attention_backend", breaks="attention of a pipeline with another backend cannot be seen")
def test_processors_use_the_native_backend_inside():
    pipe = build("flux-dev")
    modules = [block.attn for block in pipe.transformer.transformer_blocks]
    with attention_backend("native"):  # what follows changes the whole process's, which this puts back
        pipe.transformer.set_attention_backend("_native_math")
        with _private.native_processors(modules):
            assert {module.processor._attention_backend for module in modules} == {"native"}
        assert {module.processor._attention_backend for module in modules} == {"_native_math"}


@touches(
    *("attention_backend", "diffusers.models.attention_dispatch._AttentionBackendRegistry", "_active_backend"),
    breaks="attention of a process with another default backend cannot be seen",
)
def test_the_dispatcher_can_be_sent_to_the_native_backend():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    with attention_backend("_native_math"):
        with _private.native_dispatch():
            assert registry.get_active_backend()[0].value == "native"
            with _private.native_dispatch():
                assert registry.get_active_backend()[0].value == "native"
        assert registry.get_active_backend()[0].value == "_native_math"


@touches("_fused_sdp_choice", breaks="the recorder takes another kernel than the model, whose output changes by bits")
def test_the_kernel_that_pytorch_takes_is_known():
    query = torch.ones(1, 2, 3, 8)
    choice = _private.sdp_choice(query, query, query)
    assert choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value


@touches("_scaled_dot_product_", breaks="the log-sum-exp of fused attention is computed a second time, which is slower")
def test_fused_attention_gives_its_log_sum_exp():
    query = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    _, lse = _private.sdp_operator("flash_attention_for_cpu")(query, query, query, scale=0.5)
    torch.testing.assert_close(lse, (query @ query.mT * 0.5).logsumexp(-1))


@touches("_patchify_latents", "_unpatchify_latents", breaks="images of FLUX.2 and ERNIE-Image are cut in another order")
def test_patches_of_flux2():
    pipe = build("flux2-klein")
    latents = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = _private.patchify(pipe, latents)
    assert patches.shape == (1, 8, 2, 3)
    assert patches[0, :, 0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]
    assert torch.equal(_private.unpatchify(pipe, patches), latents)


@touches("_get_messages", breaks="tokens of Ovis-Image have the names of others")
def test_the_template_of_ovis_image():
    assert "a cat" in _private.ovis_message(build("ovis-image"), "a cat")


@pytest.mark.parametrize(
    ("name", "function", "arguments", "expected"),
    [
        ("flux2-dev", "format_input", (["a cat"], "be kind"), "a cat"),
        ("hunyuan-image", "extract_glyph_text", ('a sign "OPEN"',), "OPEN"),
    ],
)
@touches("__module__", breaks="tokens of FLUX.2 dev and HunyuanImage have the names of others")
def test_functions_beside_a_pipeline(name, function, arguments, expected):
    assert expected in str(_private.module_function(build(name), function)(*arguments))


@touches("_execution_device", breaks="inputs are put beside an offloaded model, on another device")
def test_the_device_of_a_pipeline():
    assert _private.execution_device(tiny_pipeline()) == torch.device("cpu")


@touches("_shift", breaks="a changed shift of the schedule gives results that were kept for another one")
def test_the_shift_of_a_scheduler():
    scheduler = tiny_pipeline().scheduler
    scheduler.set_shift(2.5)
    assert _private.scheduler_shift(scheduler) == 2.5
    assert _private.scheduler_shift(object()) is None


@touches("_progress_bar_config", breaks="a pipeline's progress bar stays hidden after generate(progress=False)")
def test_the_progress_bar_comes_back():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False, desc="mine")
    with _private.progress_bar(pipe, False):
        assert pipe.progress_bar(range(2)).disable is True
    assert pipe._progress_bar_config == {"disable": False, "desc": "mine"}


@touches("_diffusers_hook", breaks="a run is resumed although caches or casting of diffusers change its model")
def test_hooks_of_diffusers_are_listed():
    module = nn.Linear(2, 3)
    assert _private.diffusers_hooks(module) == {}
    apply_layerwise_casting(module, torch.float16, torch.float32)
    assert list(_private.diffusers_hooks(module)) == ["layerwise_casting"]


@touches(
    "_internal_dict", breaks="the fingerprint of a model holds where it was loaded from, so that no run is resumed"
)
def test_where_models_keep_their_configuration():
    transformer = tiny_pipeline().transformer
    assert vars(transformer)[_private.CONFIG_ATTRIBUTE] == transformer.config


@touches("_foreach_", breaks="pretraining has no optimizer and no moving average")
def test_operators_on_lists():
    values = [torch.ones(2), torch.zeros(3)]
    _private.foreach("lerp_")(values, [torch.zeros(2), torch.ones(3)], 0.25)
    assert [value[0].item() for value in values] == [0.75, 0.25]
    assert [value[0].item() for value in _private.foreach("lerp")(values, [torch.ones(2), torch.ones(3)], 1.0)] == [
        1,
        1,
    ]
    _private.foreach("mul_")(values, 2)
    _private.foreach("add_")(values, [torch.ones(2), torch.ones(3)], alpha=-1)
    assert [value[0].item() for value in values] == [0.5, -0.5]


@touches("_shared_state", "_mixed_precision", "_reset_state", breaks="a process cannot fine-tune in a second precision")
def test_another_precision_in_one_process():
    try:
        for precision in ("no", "bf16"):
            _private.allow_precision(precision)
            assert Accelerator(cpu=True, mixed_precision=precision).mixed_precision == precision
            kept = AcceleratorState._shared_state
            _private.allow_precision(precision)
            assert AcceleratorState._shared_state["_mixed_precision"] == precision == kept["_mixed_precision"]
    finally:
        AcceleratorState._reset_state()


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Lines and private names, in a module's source, of what the module does not define itself."""
    tree = ast.parse(source)
    own = {
        name
        for node in ast.walk(tree)
        for name in (
            *([node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []),
            *([node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []),
            *([node.attr] if isinstance(node, ast.Attribute) and _is_self(node) else []),
        )
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                library, *parts = (base + alias.name).split(".")
                if library in LIBRARIES and any(map(_is_private, parts)):
                    yield node.lineno, base + alias.name
        elif isinstance(node, ast.Attribute) and not _is_self(node) and _is_private(node.attr) and node.attr not in own:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # what getattr, vars or an f-string take
            last = node.value.rpartition(".")[2]
            if re.fullmatch(r"(\w+\.)*_[a-z]\w+", node.value) and last not in own | PUBLIC:
                yield node.lineno, node.value


def _is_self(node: ast.Attribute) -> bool:
    base = node.value
    return isinstance(base, ast.Name) and base.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from diffusers.models._x import y", ["diffusers.models._x.y"]),
        ("from transformers.utils import _y as y", ["transformers.utils._y"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("module._hf_hook.offload = True", ["_hf_hook"]),
        ("torch._foreach_add_([a], [b])", ["_foreach_add_"]),
        ("getattr(module, '_orig_mod', None)", ["_orig_mod"]),
        ("vars(pipe)['_progress_bar_config']", ["_progress_bar_config"]),
        ("getattr(torch, f'_foreach_{name}')", ["_foreach_"]),
        ("self._mine = cls._other = other._mine", []),
        ("from seg4diff_tools._runs import as_path; x = type(y).__name__", []),
    ],
)
def test_the_search_finds(line, found):
    assert [name for _, name in private_names(line)] == found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stand_in_one_module(path):
    if path == Path(_private.__file__):
        return
    found = [f"line {line}: {name}" for line, name in private_names(path.read_text(encoding="utf-8"))]
    assert not found, f"{path.name} touches private names of libraries ({found}): move them to families/_private.py"


def test_each_private_name_has_a_test():
    touched = {name for _, name in private_names(Path(_private.__file__).read_text(encoding="utf-8"))}
    assert touched - TESTED == set(), "write a test of them that says what breaks without them"
    assert {name for name in TESTED - touched if name.startswith("_")} <= {"__module__"}, "no longer touched"
