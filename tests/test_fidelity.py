"""The package against a second implementation of what the paper and its released code define.

The reference takes the loaded weights and shares no other code with the package: prompts, latents, noise, the whole N
x N attention of every layer, maps, groups and scores are written out here with torch, NumPy and SciPy.
"""

import copy
import math

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr
from torch.nn.functional import interpolate, pad

from seg4diff_tools import paper
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.scenes import BACKGROUNDS, BASE_CONCEPTS, Scenes, gallery
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import segment
from seg4diff_tools.segmentation.unsupervised import group


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module", params=["mini", "sd3", "sd3.5"])
def model(request, mini, build_backbone):
    """The shipped model; random ones without and with normalized queries and image-only attention beside."""
    if request.param == "mini":
        return mini
    return build_backbone(
        **({"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if request.param == "sd3.5" else {})
    )


@pytest.fixture(scope="module")
def drawn():
    return gallery()[21]


class Materialized:
    """Joint attention of SD3 that keeps its whole map [head token token], before and after the softmax."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, *args, **kwargs):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image = [heads(layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        text = [heads(layer(encoder_hidden_states)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        if attn.norm_q is not None:
            image[:2] = attn.norm_q(image[0]), attn.norm_k(image[1])
            text[:2] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(image, text, strict=True))
        self.scores = query @ key.mT / math.sqrt(query.shape[-1])
        self.softmax = self.scores.softmax(-1)
        output = (self.softmax @ value).transpose(1, 2).flatten(2)
        places = hidden_states.shape[1]
        words = output[:, places:] if attn.context_pre_only else attn.to_add_out(output[:, places:])
        return attn.to_out[1](attn.to_out[0](output[:, :places])), words


@torch.no_grad()
def attention(backbone, picture, text, layer, *, step=8, steps=28, seed=0, zeros=77):
    """The joint attention of one layer for a picture [y x 3] of the model's size and a prompt, cut where it is too
    long."""
    pipe = backbone.pipe
    embeds, pooled = [], []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True)
        embeds.append(output.hidden_states[-2])
        pooled.append(output.text_embeds)
    words = torch.cat(embeds, dim=-1)
    words = pad(words, (0, pipe.transformer.config.joint_attention_dim - words.shape[-1], 0, zeros))

    pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255 * 2 - 1
    latents = pipe.vae.encode(pixels).latent_dist.mean
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    # linear times from 1 to the training schedule's last sigma, bent by the shift
    last = 0.003 / 1.002
    time = np.linspace(1, last, steps)[-step]
    sigma = 3 * time / (1 + 2 * time)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    noisy = (1 - sigma) * latents + sigma * noise

    transformer = copy.deepcopy(pipe.transformer)
    # what comes after the layer cannot change it
    transformer.transformer_blocks = transformer.transformer_blocks[: layer + 1]
    for block in transformer.transformer_blocks:
        block.attn.processor = Materialized()
    transformer(noisy.float(), words, torch.cat(pooled, dim=-1), torch.tensor([1000 * sigma]).float())
    return transformer.transformer_blocks[layer].attn.processor


def spans(backbone, names):
    """First and last token of each name, counted as the released code does: names are tokenized one by one."""
    counts = [len(backbone.pipe.tokenizer(name).input_ids) - 2 for name in names]
    return [(1 + sum(counts[:i]), 1 + sum(counts[: i + 1])) for i in range(len(names))]


def class_maps(backbone, joint, names, size):
    """Every head and class brought to the image's size, then the mean over heads: [class y x]."""
    side = backbone.transformer.config.sample_size // backbone.transformer.config.patch_size
    i2t = joint[0, :, : side**2, side**2 : side**2 + 77]
    maps = [i2t[:, :, first:last].mean(-1).unflatten(-1, (side, side)) for first, last in spans(backbone, names)]
    return interpolate(torch.stack(maps, dim=1), size=size, mode="bilinear", align_corners=False).mean(0)


def native(backbone, picture):
    """A picture at the model's size, resized as the package does."""
    side = backbone.transformer.config.sample_size * backbone.pipe.vae_scale_factor
    return PIL.Image.fromarray(np.asarray(picture)).resize((side, side), PIL.Image.Resampling.LANCZOS)


def check(result, maps):
    """Same maps; same labels at every pixel whose two best classes are further apart than rounding."""
    found = result.upsampled().values
    np.testing.assert_allclose(found, maps, rtol=0, atol=1e-5)
    rounding = np.nan_to_num(np.abs(found - maps.numpy())).max(0)  # of this processor's operators, at each pixel
    best = maps.nan_to_num(nan=torch.inf).topk(2, dim=0).values.numpy()
    with np.errstate(invalid="ignore"):  # of two classes without a map
        decided = ~(best[0] - best[1] < 1e-8 + 2 * rounding)
    assert decided.mean() > 0.999
    assert np.array_equal(result.label_map[decided], maps.argmax(0).numpy()[decided])


@pytest.mark.parametrize("layer", [0, 4])
def test_class_maps_and_label_map(model, drawn, layer):
    result = segment(model, drawn.image, drawn.class_names, OpenVocabulary(layers=layer))
    joint = attention(model, native(model, drawn.image), " ".join(drawn.class_names), layer).softmax
    check(result, class_maps(model, joint, drawn.class_names, drawn.label_map.shape))


def test_label_maps_of_the_shipped_model_are_identical(mini):
    for scene in Scenes("test", 3):
        result = segment(mini, scene.image, scene.class_names, OpenVocabulary(**paper.RELEASED["segment"]))
        maps = class_maps(mini, attention(mini, scene.image, scene.prompt, 4).softmax, scene.class_names, (96, 96))
        assert torch.equal(torch.tensor(result.label_map), maps.argmax(0))


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"zero_tokens": 0}, {"zeros": 0}),
        ({"zero_tokens": 256}, {"zeros": 256}),
        ({"steps_from_end": 7}, {"step": 7}),
        ({"steps_from_end": 9}, {"step": 9}),
        ({"steps_from_end": 3, "steps": 11}, {"step": 3, "steps": 11}),
        ({"seeds": 5}, {"seed": 5}),
    ],
)
def test_quirks_of_the_forward(mini, drawn, options, reference):
    paper_way = paper.RELEASED["segment"]
    result = segment(mini, drawn.image, drawn.class_names, OpenVocabulary(**(paper_way | options)))
    joint = attention(mini, drawn.image, drawn.prompt, 4, **reference).softmax
    check(result, class_maps(mini, joint, drawn.class_names, (96, 96)))
    plain = segment(mini, drawn.image, drawn.class_names, OpenVocabulary(**paper_way))
    assert abs(plain.class_maps - result.class_maps).max() > 1e-4


def test_noise_level_is_that_of_the_released_code(mini):
    # scheduler.timesteps[-8] of 28: not the 0.545 of a time of 8 / 28
    time = 1 - 20 / 27 * (1 - 0.003 / 1.002)
    assert mini.schedule(28)[1][-8].item() == pytest.approx(3 * time / (1 + 2 * time), abs=1e-6)
    assert mini.schedule(28)[1][-8].item() == pytest.approx(0.5151, abs=1e-4)


@pytest.mark.parametrize("normalize", ["softmax", "scores"])
@pytest.mark.parametrize("minmax", [False, True])
def test_normalizations(mini, drawn, normalize, minmax):
    result = segment(mini, drawn.image, drawn.class_names, OpenVocabulary(normalize=normalize, minmax=minmax))
    joint = getattr(attention(mini, drawn.image, drawn.prompt, 4), normalize)
    maps = class_maps(mini, joint, drawn.class_names, (12, 12))
    if minmax:
        low, high = maps.flatten(1).min(1).values, maps.flatten(1).max(1).values
        maps = (maps - low[:, None, None]) / (high - low)[:, None, None]
    np.testing.assert_allclose(result.class_maps, maps, rtol=0, atol=1e-5)
    assert np.array_equal(result.label_map, interpolate(maps[None], size=(96, 96), mode="bilinear")[0].argmax(0))


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_pictures_that_are_not_square(mini, drawn, fit):
    picture = PIL.Image.fromarray(drawn.image).crop((0, 16, 96, 79))
    result = segment(mini, picture, drawn.class_names, OpenVocabulary(fit=fit))
    frame = (16, 0, 79, 63) if fit == "crop" else (0, 0, 96, 63)
    shown = picture.resize((96, 96), PIL.Image.Resampling.LANCZOS, box=(16.5, 0, 79.5, 63) if fit == "crop" else None)
    joint = attention(mini, shown, drawn.prompt, 4).softmax
    check(result, class_maps(mini, joint, drawn.class_names, (63, frame[2] - frame[0])))
    assert result.settings["frame"] == list(frame)


LONG = [f"{color} {name}" for name in BASE_CONCEPTS[:20] for color in ("red", "blue")]  # two tokens each


@pytest.mark.parametrize(("count", "lost"), [(37, 0), (38, 0), (40, 2)])
def test_cut_prompts(mini, drawn, count, lost):
    # 37 names are 74 of 75 tokens; of the 38th one is read, and the end token stands in the place of the other
    result = segment(mini, drawn.image, LONG[:count], OpenVocabulary(cut_prompt=True))
    joint = attention(mini, drawn.image, " ".join(LONG[:count]), 4).softmax
    maps = class_maps(mini, joint, LONG[:count], (96, 96))
    check(result, maps)
    assert maps.isnan().flatten(1).all(1).sum() == lost
    # argmax takes NaN for the largest: the first name that was cut off gets the whole picture
    assert (set(result.label_map.flatten()) == {38}) == (lost > 0)


def test_prompts_that_are_split(mini, drawn):
    result = segment(mini, drawn.image, LONG)
    maps = []
    for names in (LONG[:20], LONG[20:]):
        joint = attention(mini, drawn.image, " ".join(names), 4).softmax
        maps.append(class_maps(mini, joint, names, (96, 96)))
    check(result, torch.cat(maps))


def scores(true, predicted, classes):
    """pACC, mACC and mIoU of a set as detectron2's evaluator has them; 255 is ignored."""
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for one, other in zip(true, predicted, strict=True):
        cells = (classes + 1) * other.flatten() + np.where(one == 255, classes, one).flatten()
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    counts = counts[:-1, :-1]  # rows are predicted here
    hits, truth, found = np.diag(counts), counts.sum(0), counts.sum(1)
    there = truth > 0
    iou = hits[there] / (truth + found - hits)[there]
    return hits.sum() / truth.sum(), (hits[there] / truth[there]).mean(), iou.mean()


@pytest.mark.parametrize("protocol", ["present", "full"])
def test_scores_of_a_set(mini, protocol):
    samples = [Scenes("test", 5)[index] for index in (0, 3, 4)]
    samples[1].label_map[:7, :11] = 255
    vocabulary = [*BASE_CONCEPTS, *BACKGROUNDS]
    true, predicted = [], []
    for sample in samples:
        names = list(sample.class_names) if protocol == "present" else vocabulary
        joint = attention(mini, sample.image, " ".join(names), 4).softmax
        found = class_maps(mini, joint, names, (96, 96)).argmax(0).numpy()
        predicted.append(np.array([vocabulary.index(name) for name in names])[found])
        numbers = np.array([vocabulary.index(name) for name in sample.class_names])
        lookup = np.full(256, 255)
        lookup[: len(numbers)] = numbers
        true.append(lookup[sample.label_map])
    released = paper.RELEASED["layer_step_sweep"] | ({} if protocol == "present" else {"vocabulary": vocabulary})
    axes = {name: released[name] for name in ("steps_from_end", "heads", "directions", "normalize", "vocabulary")}
    options = OpenVocabulary(**{name: value for name, value in released.items() if name not in axes})
    (row,) = layer_step_sweep(mini, samples, options, layers=[4], progress=False, **axes).table().itertuples()
    assert row.protocol == protocol
    np.testing.assert_allclose([row.pACC, row.mACC, row.mIoU], scores(true, predicted, len(vocabulary)), rtol=1e-12)


def divergence(first, second):
    return (rel_entr(first, second).sum() + rel_entr(second, first).sum()) / 2


def published_groups(maps, threshold, rounds=3):
    """Groups of token maps [token y x] by the paper's text, after DiffSeg: distributions and their tokens."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    spread = np.exp((maps - low) / (high - low))
    groups = [(one / one.sum(), [token]) for token, one in enumerate(spread)]
    for _ in range(rounds):
        left, merged = groups, []
        while left:
            near = [one for one in left if divergence(left[0][0], one[0]) <= threshold]
            left = [one for one in left if not any(one is other for other in near)]
            merged.append((np.mean([one for one, _ in near], 0), [token for _, tokens in near for token in tokens]))
        groups = merged
    return groups


def released_groups(maps, threshold):
    """Groups by the released code: values scaled over the tokens at each place, one round, tokens shared by groups."""
    maps = maps - maps.min(0)
    maps = maps / (maps.max(0) + 1e-6)
    maps = np.exp(maps) / np.exp(maps).sum((1, 2), keepdims=True)
    taken, groups = set(), []
    for anchor in range(len(maps)):
        if anchor not in taken:
            near = [token for token in range(len(maps)) if divergence(maps[anchor], maps[token]) < threshold]
            taken |= {anchor, *near}
            groups.append((maps[near].mean(0), near))
    return groups


@pytest.fixture(scope="module")
def pads(mini, drawn):
    """What image tokens give to the 77 CLIP tokens of the empty prompt, mean over heads: [token y x] in float64."""
    joint = attention(mini, drawn.image, "", 4).softmax
    return joint[0].mean(0)[:144, 144:221].T.double().reshape(77, 12, 12).numpy()


def check_groups(found, groups, positions):
    np.testing.assert_allclose(found.proposals, [maps for maps, _ in groups], rtol=0, atol=1e-5)
    first = [min(number for number, (_, tokens) in enumerate(groups) if token in tokens) for token in positions]
    assert found.groups.tolist() == first
    pixels = interpolate(torch.tensor(found.proposals.values)[None], size=(96, 96), mode="bilinear")[0]
    assert np.array_equal(found.label_map, pixels.argmax(0))


@pytest.mark.parametrize(("threshold", "count"), [(1e-6, 3), (0.035, 1)])
def test_groups_of_the_paper(mini, drawn, pads, threshold, count):
    groups = published_groups(pads[2:], threshold)
    assert len(groups) == count
    check_groups(group(mini, drawn.image, Unsupervised(threshold=threshold)), groups, range(75))


@pytest.mark.parametrize(("threshold", "count"), [(1e-4, 10), (1e-3, 3), (0.1, 2)])
def test_groups_of_the_released_code(mini, drawn, pads, threshold, count):
    groups = released_groups(pads, threshold)
    assert len(groups) == count
    options = Unsupervised(**(paper.RELEASED["group"] | {"threshold": threshold}))
    check_groups(group(mini, drawn.image, options), groups, range(77))


def matched(groups, true, classes, absent):
    """Hits, false alarms and misses of each class, with groups matched to classes so that most pixels are right."""
    table = np.zeros((classes, max(classes, groups.max() + 1)), dtype=np.int64)
    np.add.at(table, (true[true < classes], groups[true < classes]), 1)
    _, chosen = linear_sum_assignment(table, maximize=True)
    hits = table[range(classes), chosen]
    # the released code also names a group for a class that it does not touch
    alarms = np.where(absent | (hits > 0), table[:, chosen].sum(0) - hits, 0)
    return np.array([hits, alarms, table.sum(1) - hits])


def released_picture(image, label_map):
    """Picture and labels as the released unsupervised evaluation reads them: 640 pixels, padded with black."""
    scale = 640 / min(image.size)
    columns, rows = (round(side * scale) for side in image.size)
    canvas = PIL.Image.new("RGB", (-(-columns // 32) * 32, -(-rows // 32) * 32))
    canvas.paste(image.resize((columns, rows), PIL.Image.Resampling.BILINEAR))
    pixels = torch.tensor(np.array(canvas)).permute(2, 0, 1)[None] / 255
    pixels = (255 * interpolate(pixels, size=(96, 96), mode="bilinear")[0]).round().byte()
    labels = PIL.Image.fromarray(label_map).resize((columns, rows), PIL.Image.Resampling.NEAREST)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy()), np.array(labels)


def released_pixels(maps, file_size, size):
    """Maps stretched over the file, cut to the size of the picture that was read, and stretched to it."""
    maps = interpolate(torch.tensor(maps)[None], size=file_size, mode="bilinear")
    return interpolate(maps[..., : size[0], : size[1]], size=size, mode="bilinear")[0].argmax(0).numpy()


@pytest.mark.parametrize("file_size", [(90, 96), (700, 910)])
def test_scores_of_groups(mini, file_size):
    samples = []
    for index in (0, 2):
        scene = Scenes("test", 3)[index]
        picture = PIL.Image.fromarray(scene.image).resize(file_size[::-1])
        labels = np.array(PIL.Image.fromarray(scene.label_map).resize(file_size[::-1], PIL.Image.Resampling.NEAREST))
        samples.append(LabeledImage(picture, scene.class_names, labels))
    samples[1].label_map[:7, :11] = 255
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    counts = {("released", "rows"): 0, ("released", "image"): 0, ("image", "image"): 0}
    for sample in samples:
        lookup = np.full(256, 255)
        lookup[: len(sample.class_names)] = [vocabulary.index(name) for name in sample.class_names]
        for frame in ("released", "image"):
            picture, labels = sample.image.resize((96, 96), PIL.Image.Resampling.LANCZOS), sample.label_map
            if frame == "released":
                picture, labels = released_picture(sample.image, labels)
            joint = attention(mini, picture, "", 4).softmax[0].mean(0)[:144, 144:221].T.reshape(77, 12, 12)
            maps = np.stack([one for one, _ in released_groups(joint.double().numpy(), 0.1)])
            if frame == "released":
                found = released_pixels(maps, file_size, labels.shape)
            else:
                found = interpolate(torch.tensor(maps)[None], size=file_size, mode="bilinear")[0].argmax(0).numpy()
            true = lookup[labels]
            counts[frame, "image"] += matched(found, true, len(vocabulary), absent=False)
            if frame == "released":
                by_row = (matched(*rows, len(vocabulary), absent=True) for rows in zip(found, true, strict=True))
                counts[frame, "rows"] += sum(by_row)
    for (frame, matching), (hits, alarms, misses) in counts.items():
        options = Unsupervised(**paper.RELEASED["group"] | {"matching": matching})
        choices = paper.RELEASED["grouping_scores"] | {"frame": frame}
        (row,) = grouping_scores(mini, samples, options=options, progress=False, **choices).itertuples()
        # maps are fp32 there and fp64 here: of 870,000 pixels some lie on an edge
        assert row.pACC == pytest.approx(hits.sum() / (hits + misses).sum(), abs=2e-4)
        assert row.mIoU == pytest.approx((hits / (hits + alarms + misses)).mean(), abs=2e-4)
