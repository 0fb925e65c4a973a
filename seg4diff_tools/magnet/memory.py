"""How many images of a batch fit into memory at once, by an estimate that a benchmark measures."""

import os

import torch

from seg4diff_tools.backbones.backbone import Backbone

# tests/benchmarks/bench_memory.py measured 40 and 38 at the peak of a step of random SD3s (4 and 8 blocks, fp32, CPU),
# of which autograd keeps 16 and 15
VALUES_PER_CHANNEL = 40


def step_bytes(backbone: Backbone, size: int | None = None) -> int:
    """Estimate the memory that a step takes at most for one image, without gradient checkpointing.

    Args:
        backbone: the model.
        size: side of the image in pixels; None for the model's own.
    """
    tokens = ((size or backbone.image_size) // backbone.token_px) ** 2
    weights = backbone.transformer.named_parameters()
    queries = (value.shape[0] for name, value in weights if name.endswith((".to_q.weight", ".to_q.base_layer.weight")))
    return VALUES_PER_CHANNEL * tokens * backbone.layers * max(queries, default=1) * backbone.dtype.itemsize


def images_that_fit(backbone: Backbone, share: int, size: int | None = None) -> int:
    """Return how many images of a process's share of a batch fit into the free memory at once; it divides the share.

    Args:
        backbone: the model.
        share: images of an update that fall to this process.
        size: side of the images in pixels; None for the model's own.
    """
    if backbone.device.type == "cuda":
        free = torch.cuda.mem_get_info(backbone.device)[0]
    elif hasattr(os, "sysconf"):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    else:
        return share
    fitting = max(1, int(0.8 * free) // step_bytes(backbone, size))
    return max(count for count in range(1, share + 1) if share % count == 0 and count <= fitting)
