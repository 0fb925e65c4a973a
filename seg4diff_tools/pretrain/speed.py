"""Precision, compilation and attention of a training step, by the available hardware."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from seg4diff_tools.backbones.checkpoints import cpu_has_bf16
from seg4diff_tools.backbones.loading import as_device
from seg4diff_tools.errors import one_of
from seg4diff_tools.indices import as_indices


@dataclass(frozen=True)
class Speed:
    """Computation settings of a training step. The defaults are PyTorch's; `best` chooses the fastest.

    Attributes:
        dtype: of matrix products in the forward and backward, and of Muon's iteration; weights, moments and averages
            stay in fp32.
        compiled: whether the transformer's blocks are compiled.
        joint_attention: "native" for `scaled_dot_product_attention`, "matrix" for plain matrix products; in compiled
            blocks in fp32 on a CPU both are as fast.
        batched: whether Muon processes matrices of one shape together.
    """

    dtype: torch.dtype = torch.float32
    compiled: bool = False
    joint_attention: str = "native"
    batched: bool = False

    def __post_init__(self) -> None:
        one_of(self.dtype, "dtype", (torch.float32, torch.bfloat16))
        one_of(self.joint_attention, "joint_attention", ("native", "matrix"))
        for name in ("compiled", "batched"):
            one_of(getattr(self, name), name, (False, True))

    @classmethod
    def best(cls, device: torch.device | str, compiled: bool | None = None) -> "Speed":
        """Return the fastest settings on this machine; `compiled` overrides the search for a compiler."""
        device = as_device(device)
        found = has_compiler(device) if compiled is None else compiled
        dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
        return cls(dtype, found, "matrix" if device.type == "cpu" else "native", batched=True)

    def describe(self, device: torch.device) -> str:
        """Describe the settings and their effect on resumed runs, for the log."""
        name = str(self.dtype).removeprefix("torch.")
        compiled = "blocks are compiled" if self.compiled else "blocks run uncompiled"
        if not self.compiled and not has_compiler(device):
            compiled += " (no compiler was found: training works, but slower; install g++, or triton for a GPU)"
        exact = (
            "A resumed run ends with the same weights as an uninterrupted one on this machine with as many threads."
            if device.type == "cpu"
            else "A resumed run sees the same data, but GPU operators add in any order: weights differ by rounding."
        )
        threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        return f"{device.type}{threads}: products in {name}, {compiled}, {self.joint_attention} attention. {exact}"


def fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and cpu_has_bf16()


def has_compiler(device: torch.device) -> bool:
    """Return whether `torch.compile` can build kernels for the device: a C++ compiler, or Triton on a GPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    names = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    return device.type == "cpu" and any(shutil.which(name) for name in names)


def pin(cores: list[int]) -> None:
    """Pin this process to CPU cores, one thread each; outside Linux, only set the number of threads.

    Args:
        cores: numbers of the cores, from 0.

    Raises:
        InputError: no such core.
    """
    cores = as_indices(cores, "cores", os.cpu_count())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


class TrainingAttention:
    """An attention processor for SD3's blocks with a bias for each key, without hooks.

    Same result as diffusers' own processor under `intercept(model, bias=...)`, but it cannot be recorded: for
    training only. States are [batch tokens width], `key_bias` is [keys], image before text; shapes are not checked, so
    that it can be compiled.
    """

    def __init__(self, matrix: bool) -> None:
        self.matrix = matrix

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        key_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        def heads(projected: Tensor, norm: nn.Module | None) -> Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        key = torch.cat([heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        value = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], 2)
        if self.matrix:
            output = matrix_attention(query, key, value, key_bias)
        else:
            mask = None if key_bias is None else key_bias.to(query.dtype)[None, None, None]
            output = nn.functional.scaled_dot_product_attention(query, key, value.to(query.dtype), attn_mask=mask)
        output = output.transpose(1, 2).flatten(2)
        image, text = output[:, : image.shape[1]], output[:, image.shape[1] :]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def matrix_attention(query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """Compute attention as two matrix products and a softmax in fp32 or better.

    Args:
        query: [batch heads queries dim].
        key, value: [batch heads keys dim].
        key_bias: [keys], added to the scores of each key.
    """
    flat = [x.flatten(0, 1) for x in (query * query.shape[-1] ** -0.5, key, value)]
    scores = torch.bmm(flat[0], flat[1].mT)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if key_bias is not None:
        scores = scores + key_bias
    return torch.bmm(scores.softmax(-1).to(flat[2].dtype), flat[2]).unflatten(0, query.shape[:2])


def accelerate(model: SD3Transformer2DModel, speed: Speed) -> None:
    """Prepare a transformer for training, in place: attention with `key_bias`, and compiled blocks.

    Blocks are compiled for fixed shapes, one graph for each number of text columns. All blocks share a graph except the
    last, which has no text output.
    """
    processor: Any = TrainingAttention(speed.joint_attention == "matrix")
    model.set_attn_processor(processor)
    if speed.compiled:
        for block in model.transformer_blocks:
            block.compile(dynamic=False)
