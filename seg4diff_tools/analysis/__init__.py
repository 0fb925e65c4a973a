"""Analyses of attention: features, norms, sinks, leaks, heads, searches over layers and steps, effects of edits."""

from seg4diff_tools.analysis.carriers import (
    WordPair,
    ablated_segmentation,
    ablation_effects,
    carried_shares,
    edit_heads,
    patch_effects,
    word_pairs,
)
from seg4diff_tools.analysis.features import (
    Feature,
    Projection,
    attention_budget,
    explained_variance,
    image_features,
    pca_colors,
    token_labels,
    value_norms,
)
from seg4diff_tools.analysis.heads import choose_heads, cross_validated, head_class_maps, part_scores
from seg4diff_tools.analysis.leaks import leakage
from seg4diff_tools.analysis.perturbation import Effects, guidance_effects, layer_effects, mean_intervals, resampled
from seg4diff_tools.analysis.placement import Placing, asked_places, placing_effects
from seg4diff_tools.analysis.search import choose_combination
from seg4diff_tools.analysis.sinks import attention_takers, close_keys, random_keys, top_keys
from seg4diff_tools.analysis.streams import massive_channels, neighbor_agreement

__all__ = [
    "Effects",
    "Feature",
    "Placing",
    "Projection",
    "WordPair",
    "ablated_segmentation",
    "ablation_effects",
    "asked_places",
    "attention_budget",
    "attention_takers",
    "carried_shares",
    "choose_combination",
    "choose_heads",
    "close_keys",
    "cross_validated",
    "edit_heads",
    "explained_variance",
    "guidance_effects",
    "head_class_maps",
    "image_features",
    "layer_effects",
    "leakage",
    "massive_channels",
    "mean_intervals",
    "neighbor_agreement",
    "part_scores",
    "patch_effects",
    "pca_colors",
    "placing_effects",
    "random_keys",
    "resampled",
    "token_labels",
    "top_keys",
    "value_norms",
    "word_pairs",
]
