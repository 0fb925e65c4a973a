"""The axis words of this package and the jaxtyping aliases built from them.

batch    images times guidance branches, as the transformer sees them
heads    attention heads
tokens   the joint sequence: image tokens and text tokens, in the family's order
query    positions that attend (image or text tokens)
key      positions that are attended to (image or text tokens)
dim      channels of one head
image, text, layer, step, y, x   as in the labeled results; y and x count image tokens, not pixels
"""

from jaxtyping import Float
from torch import Tensor

JointHeads = Float[Tensor, "batch heads tokens dim"]
LogSumExp = Float[Tensor, "batch heads tokens"]
AttentionBlock = Float[Tensor, "batch heads query key"]
