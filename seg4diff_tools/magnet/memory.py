"""How many images of a batch fit into memory at once, by an estimate that a benchmark measures."""

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.memory import checked_budget, token_bytes

TRANSIENT, KEPT, CHECKPOINTED = 45, 21, 10
"""Values for each token and channel: temporaries of one block in both passes, what autograd keeps of a block, and what
a block costs that is computed again. Resident memory on a CPU (tests/benchmarks/bench_memory.py and real_size.py),
whose allocator leaves gaps; tensors alone take a sixth to four fifths of it (tests/test_memory.py)."""
LORA_INPUTS = 4
"""Inputs of a block's LoRA layers, which autograd keeps in fp32 beside those of a model in half precision."""

WORTH = 8
"""Zero vectors in T5's place are computed as one where they are at least an eighth of the joint sequence."""


def zeros_as_one(backbone: Backbone, zero_tokens: int = 77, size: int | None = None) -> int:
    """Return how many zero vectors a training step computes as one; 0 where it computes each.

    Args:
        backbone: the model.
        zero_tokens: their number in a prompt.
        size: side of the image in pixels; None for the model's own.
    """
    family = backbone.family
    rows, columns = backbone.latent_size(size)[1:]
    tokens = rows * columns // family.patch_size**2 + family.clip_tokens + zero_tokens
    worth = family.zero_text(backbone.pipe) and zero_tokens > 1 and zero_tokens * WORTH >= tokens
    return zero_tokens if worth else 0


def step_bytes(backbone: Backbone, size: int | None = None, *, checkpointing: bool = False) -> int:
    """Estimate the memory that a step takes at most for one image, beside the weights.

    Args:
        backbone: the model.
        size: side of the image in pixels; None for the model's own.
        checkpointing: whether blocks are computed again in the backward pass.
    """
    tokens = ((size or backbone.image_size) // backbone.token_px) ** 2 + len(backbone.encode_prompt("").tokens)
    tokens -= max(0, zeros_as_one(backbone, size=size) - 1)
    kept = KEPT + (LORA_INPUTS * 4 // backbone.dtype.itemsize if backbone.dtype.itemsize < 4 else 0)
    blocks = kept + CHECKPOINTED * backbone.layers if checkpointing else kept * backbone.layers
    return (TRANSIENT + blocks) * token_bytes(backbone, tokens)


def images_that_fit(backbone: Backbone, share: int, size: int | None = None, *, checkpointing: bool = False) -> int:
    """Return how many images of a process's share of a batch fit into the free memory at once; it divides the share.

    Args:
        backbone: the model.
        share: images of an update that fall to this process.
        size: side of the images in pixels; None for the model's own.
        checkpointing: whether blocks are computed again in the backward pass.
    """
    budget = checked_budget(None, backbone.device)
    fitting = max(1, budget // step_bytes(backbone, size, checkpointing=checkpointing))
    return max(count for count in range(1, share + 1) if share % count == 0 and count <= fitting)
