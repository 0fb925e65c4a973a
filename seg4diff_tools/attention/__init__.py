"""Joint attention: exact operators, the interception point, recordings and edits."""

from seg4diff_tools.attention.chain import second_eigenvalue, token_rank
from seg4diff_tools.attention.edits import (
    Edit,
    apply_edit,
    average,
    blur,
    drop,
    edited_output,
    perturbed_guidance,
    swap,
)
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import Direction, JointAttention
from seg4diff_tools.attention.operators import attention_with_lse
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import Recording, open_recording

__all__ = [
    "AttentionRecorder",
    "Direction",
    "Edit",
    "JointAttention",
    "Recording",
    "apply_edit",
    "attention_with_lse",
    "average",
    "blur",
    "drop",
    "edited_output",
    "intercept",
    "open_recording",
    "perturbed_guidance",
    "second_eigenvalue",
    "swap",
    "token_rank",
]
