"""Generated pictures and their judges: benchmark prompts, scene detector, CLIPScore, distances."""

from seg4diff_tools.generation.benchmarks import generate_benchmark, read_prompts
from seg4diff_tools.generation.clip import Clip, clip_scores, load_clip, retrieval_accuracy
from seg4diff_tools.generation.composition import (
    CompositionPrompt,
    composition_scores,
    generate_pictures,
    judge,
    prompts,
    summary,
)
from seg4diff_tools.generation.detector import SceneDetector, detector_accuracy, load_detector, save_detector
from seg4diff_tools.generation.distances import clip_features, frechet_distance, kernel_distance, picture_distances
from seg4diff_tools.generation.encoders import ImageEncoder, image_similarity, load_image_encoder

__all__ = [
    "Clip",
    "CompositionPrompt",
    "ImageEncoder",
    "SceneDetector",
    "clip_features",
    "clip_scores",
    "composition_scores",
    "detector_accuracy",
    "frechet_distance",
    "generate_benchmark",
    "generate_pictures",
    "image_similarity",
    "judge",
    "kernel_distance",
    "load_clip",
    "load_detector",
    "load_image_encoder",
    "picture_distances",
    "prompts",
    "read_prompts",
    "retrieval_accuracy",
    "save_detector",
    "summary",
]
