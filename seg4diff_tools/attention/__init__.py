"""Joint attention: exact operators, the interception point, recordings and edits."""

from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.chain import second_eigenvalue, token_rank
from seg4diff_tools.attention.concepts import Concepts, encode_concepts
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
from seg4diff_tools.attention.patching import HeadEdit, HeadOutputs, ablate, patch, record_outputs
from seg4diff_tools.attention.placing import lock_layout, place_words, without
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import Recording, open_recording
from seg4diff_tools.attention.regions import confine_lora, regional_prompts
from seg4diff_tools.attention.temperature import temperature
from seg4diff_tools.attention.turns import Turn

__all__ = [
    "AttentionBias",
    "AttentionRecorder",
    "Concepts",
    "Direction",
    "Edit",
    "HeadEdit",
    "HeadOutputs",
    "JointAttention",
    "JointTokens",
    "Recording",
    "Turn",
    "ablate",
    "apply_edit",
    "attention_with_lse",
    "average",
    "blur",
    "confine_lora",
    "drop",
    "edited_output",
    "encode_concepts",
    "intercept",
    "lock_layout",
    "open_recording",
    "patch",
    "perturbed_guidance",
    "place_words",
    "record_outputs",
    "regional_prompts",
    "second_eigenvalue",
    "swap",
    "temperature",
    "token_rank",
    "without",
]
