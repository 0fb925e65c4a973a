"""Operators are checked on the first real call of each kind: planted faults are caught, layouts are known."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from seg4diff_tools.attention import exact, operators, trust
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.operators import attention_with_lse, observed_attention

BATCH, HEADS, TOKENS, DIM, IMAGE = 2, 6, 53, 16, 41
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def untrusted(monkeypatch):
    """Nothing was checked before, and nothing that a test does stays."""
    monkeypatch.setattr(operators, "_TRUSTED", {})
    monkeypatch.setattr(operators, "_WARNED", set())


def drawn(dtype=torch.float32, tokens=TOKENS, dim=DIM, key_heads=HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, heads, tokens, dim) for heads in (HEADS, key_heads, key_heads)]
    # twice as wide as usual: attention that is not even
    return [2 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def closed_keys(tokens=TOKENS):
    """Keys that nobody may attend to, others for each image, as padded prompts have."""
    mask = torch.ones(BATCH, 1, 1, tokens, dtype=torch.bool)
    mask[0, ..., -7:] = mask[1, ..., -3:] = False
    return mask


def softmaxed(query, key, mask, scale):
    scores = query.double() @ operators.repeated(key, query).double().mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores


def plant(monkeypatch, fault):
    """The CPU's operator with a fault: a function of the operator, the arguments and their output and log-sum-exp."""

    def wrong(query, key, value, mask, scale):
        output, lse = operators._flash_cpu(query, key, value, mask, scale)
        return fault(output.clone(), lse.clone(), query, mask)

    monkeypatch.setitem(operators._OPERATORS, SDPBackend.FLASH_ATTENTION, wrong)


def shifted(output, lse, query, mask):
    return output, lse + 0.1


def one_layer_of_many(output, lse, query, mask):
    # right for short sequences: a check on 37 tokens would not see it
    return (output, lse + 0.1) if query.shape[2] > 40 else (output, lse)


def base_two(output, lse, query, mask):
    return output, lse / math.log(2)


def padded(output, lse, query, mask):
    # rows of a log-sum-exp whose padding was not cut off
    rows = F.pad(lse, (0, -lse.shape[-1] % 32)).flatten()
    return output, rows[: lse.numel()].view(lse.shape)


def transposed(output, lse, query, mask):
    return output, lse.transpose(1, 2).contiguous()


def another_plan(output, lse, query, mask):
    output[-1, -1, -1, -1] = torch.nextafter(output[-1, -1, -1, -1], torch.tensor(math.inf, dtype=output.dtype))
    return output, lse


def heads_swapped(output, lse, query, mask):
    return output, lse.flip(1)


FAULTS = [shifted, one_layer_of_many, base_two, padded, transposed, another_plan, heads_swapped]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_the_exact_way_taken(fault, masked, monkeypatch):
    query, key, value = drawn()
    mask = closed_keys() if masked else None
    plain = F.scaled_dot_product_attention(query, key, value, mask)
    plant(monkeypatch, fault)
    with pytest.warns(UserWarning, match="FLASH_ATTENTION for torch.float32 on cpu failed its check.*in chunks"):
        attention_with_lse(query, key, value, mask)
    with warnings.catch_warnings(action="error"):
        output, lse = attention_with_lse(query, key, value, mask)
    assert torch.equal(output, plain)
    expected = softmaxed(query, key, mask, DIM**-0.5).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=0)


def test_the_reason_is_told(monkeypatch):
    for fault, reason in (
        (shifted, "its log-sum-exp is not that of the scores"),
        (transposed, "its log-sum-exp has the shape"),
        (another_plan, "its output is not that of scaled_dot_product_attention"),
    ):
        operators._TRUSTED.clear()
        plant(monkeypatch, fault)
        with pytest.warns(UserWarning, match=reason):
            attention_with_lse(*drawn())


def test_a_mask_that_makes_nan_is_filled_with_a_finite_number(monkeypatch):
    query, key, value = drawn()
    plain = F.scaled_dot_product_attention(query, key, value, closed_keys())
    given = []

    def nan_for_infinity(output, lse, query, mask):
        given.append(mask.amin().item())
        return (output, lse) if mask.isfinite().all() else (output * math.nan, lse * math.nan)

    plant(monkeypatch, nan_for_infinity)
    with warnings.catch_warnings(action="error"):
        for _ in range(2):
            output, lse, added = observed_attention(query, key, value, closed_keys(), 0.25)
    assert given == [-math.inf, -65504.0, -65504.0]
    assert added.amin() == -65504.0
    assert torch.equal(output, plain)
    expected = softmaxed(query, key, closed_keys(), 0.25).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=0)


def test_a_mask_that_makes_nan_in_any_form_is_caught(monkeypatch):
    query, key, value = drawn()
    plain = F.scaled_dot_product_attention(query, key, value, closed_keys())

    def always_nan(output, lse, query, mask):
        return output * math.nan, lse

    plant(monkeypatch, always_nan)
    with pytest.warns(UserWarning, match="its output"):
        output, lse = attention_with_lse(query, key, value, closed_keys())
    assert torch.equal(output, plain)
    assert lse.isfinite().all()


def test_a_boolean_mask_without_any_open_key_in_a_row_is_no_fault():
    query, key, value = drawn()
    mask = closed_keys().expand(BATCH, 1, TOKENS, TOKENS).clone()
    mask[:, :, ::2] = False
    plain = F.scaled_dot_product_attention(query, key, value, mask)
    with warnings.catch_warnings(action="error"):
        output, _ = attention_with_lse(query, key, value, mask)
    assert torch.equal(output, plain)


def rounded_to_tf32(tensor):
    """The 10 bits of a mantissa that TF32 keeps."""
    return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_products_in_tf32_are_caught(monkeypatch):
    def probabilities(query, key, offset, scale):
        return torch.baddbmm(offset, rounded_to_tf32(query), rounded_to_tf32(key), alpha=scale).exp_()

    query, key, value = (3 * x for x in drawn(dim=64))
    plain = F.scaled_dot_product_attention(query, key, value)
    _, lse = operators._flash_cpu(query, key, value, None, 0.125)
    assert trust.disagreement(plain, lse, plain, query, key, None, 0.125) is None
    monkeypatch.setattr(trust, "probabilities", probabilities)
    assert "add up to 1" in (trust.disagreement(plain, lse, plain, query, key, None, 0.125) or "")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fp32_products_are_exact_whatever_the_user_allows(precision):
    places = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        allowed = [place.fp32_precision for place in places]
        assert "ieee" not in allowed
        for place, device in zip(places, ("cuda", "cpu"), strict=True):
            with exact.exact_products(torch.device(device)):
                assert place.fp32_precision == "ieee"
        assert [place.fp32_precision for place in places] == allowed
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_threads_share_exact_products():
    device, place = torch.device("cpu"), torch.backends.mkldnn.matmul
    before, allowed = torch.get_float32_matmul_precision(), None
    try:
        torch.set_float32_matmul_precision("medium")
        allowed = place.fp32_precision
        first, second = (exact.exact_products(device) for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert place.fp32_precision == "ieee"  # another thread is still inside
        second.__exit__(None, None, None)
        assert place.fp32_precision == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_precision_that_was_inherited_is_inherited_again():
    place = torch.backends.cuda.matmul
    before, own = torch.backends.fp32_precision, place.fp32_precision
    try:
        torch.backends.fp32_precision, place.fp32_precision = "tf32", "none"
        with exact.exact_products(torch.device("cuda")):
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert place.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision, place.fp32_precision = before, own


def test_maps_ask_for_exact_products(monkeypatch):
    seen = []
    product = torch.baddbmm
    monkeypatch.setattr(
        torch,
        "baddbmm",
        lambda *a, **k: seen.append(torch.backends.mkldnn.matmul.fp32_precision) or product(*a, **k),
    )
    query, key, value = drawn()
    output, lse = attention_with_lse(query, key, value)
    call = JointAttention(0, slice(0, IMAGE), slice(IMAGE, TOKENS), query, key, value, lse, 0.25, None, output)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        call.head_mean("i2t", workspace=3000)
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) > 3
    assert "tf32" not in seen


@DTYPES
@pytest.mark.parametrize("mask", ["none", "boolean", "boolean rows", "added", "plane"])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_the_output_is_pytorchs_own_with_every_mask_and_grouped_keys(backend, key_heads, mask, dtype):
    query, key, value = drawn(dtype, key_heads=key_heads)
    added = torch.randn(BATCH, 1, 1, TOKENS, generator=torch.Generator().manual_seed(1)).to(dtype)
    masks = {
        "boolean": closed_keys(),
        "boolean rows": closed_keys().expand(BATCH, 1, TOKENS, TOKENS).tril().logical_or(torch.eye(TOKENS).bool()),
        "added": added,
        "plane": added[0, 0].expand(TOKENS, TOKENS).tril(),
    }
    given = masks.get(mask)
    with sdpa_kernel(backend), warnings.catch_warnings(action="error"):
        plain = F.scaled_dot_product_attention(query, key, value, given, scale=0.3, enable_gqa=True)
        for _ in range(2):
            output, lse, kept = observed_attention(query, key, value, given, 0.3, grouped=True)
    assert torch.equal(output, plain)
    scores = softmaxed(query, key, given, 0.3)
    assert (lse - scores.logsumexp(-1)).abs().max() < (1e-3 if dtype.itemsize == 2 else 2e-5)
    whole = query, operators.repeated(key, query), operators.repeated(value, query)
    call = JointAttention(0, slice(0, IMAGE), slice(IMAGE, TOKENS), *whole, lse, 0.3, kept, output)
    expected = scores.softmax(-1)[:, :, :IMAGE, IMAGE:]
    assert (call.i2t() - expected).abs().max() < (2e-3 if dtype.itemsize == 2 else 1e-5)


def test_each_kind_of_call_is_checked_once():
    checked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "disagreement", lambda *args: checked.append(args[3].shape))
        for tokens in (TOKENS, 31, TOKENS):
            for mask in (None, closed_keys(tokens), None):
                attention_with_lse(*drawn(tokens=tokens), mask)
    assert [shape[2] for shape in checked] == [TOKENS, TOKENS, 31, 31]


def test_the_check_saves_nothing_for_autograd_and_leaves_gradients():
    query, key, value = (x.requires_grad_() for x in drawn())
    saved = [0, 0]

    def count(at):
        def pack(tensor):
            saved[at] += 1
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    for at in range(2):
        with count(at):
            output, lse = attention_with_lse(query, key, value)
    # checkpointing compares both
    assert saved[0] == saved[1] > 0
    found = torch.autograd.grad(output.sum() + lse.sum(), (query, key, value))
    scores = query @ key.mT * DIM**-0.5
    expected = torch.autograd.grad((scores.softmax(-1) @ value).sum() + scores.logsumexp(-1).sum(), (query, key, value))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_operator_that_refuses_an_input_is_replaced_with_a_warning(monkeypatch):
    def picky(query, key, value, mask, scale):
        if query.shape[-1] == DIM:
            raise RuntimeError(f"head size {DIM} is not supported")
        return operators._flash_cpu(query, key, value, mask, scale)

    monkeypatch.setitem(operators._OPERATORS, SDPBackend.FLASH_ATTENTION, picky)
    query, key, value = drawn()
    with pytest.warns(UserWarning, match="refused.*head size 16"):
        output, lse = attention_with_lse(query, key, value)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(lse, (query @ key.mT / 4).logsumexp(-1), atol=1e-5, rtol=0)
    with warnings.catch_warnings(action="error"):
        attention_with_lse(*drawn(dim=8))


def test_the_check_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    attention_with_lse(*torch.ones(3, 1, 2, 7, 4))
    assert torch.equal(torch.randn(3), expected)


LENGTHS = pytest.mark.parametrize(("tokens", "dim"), [(4250, 64), (4608, 128), (37, 40)])
CUDA = {"flash": operators._flash_cuda, "efficient": operators._efficient_cuda, "cudnn": operators._cudnn_cuda}


# what PyTorch chooses them for: flash takes no masks, cuDNN and flash half precision alone, efficient no grouped keys
LAYOUTS = [
    (name, dtype, mask, key_heads)
    for name in CUDA
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for mask in ("none", "keys", "rows")
    for key_heads in (24, 8)
    if not (name == "flash" and mask != "none")
    and not (name != "efficient" and dtype == torch.float32)
    and not (name == "efficient" and key_heads != 24)
]


@pytest.mark.parametrize("mode", ["fake", "meta"])
@LENGTHS
@pytest.mark.parametrize(("name", "dtype", "mask", "key_heads"), LAYOUTS)
def test_cudas_operators_have_the_layout_that_is_expected(name, dtype, mask, key_heads, tokens, dim, mode):
    """At real lengths, without data: shapes, types and signatures, as PyTorch's own kernels declare them."""
    with FakeTensorMode() if mode == "fake" else torch.device("meta"):
        # a build for the CPU alone pads and fills no fake tensor that says it is CUDA's
        device = mode if mode == "meta" else "cuda" if torch.backends.cuda.is_built() else "cpu"
        query = torch.empty(2, tokens, 24, dim, dtype=dtype, device=device).transpose(1, 2)
        key, value = (torch.empty(2, tokens, key_heads, dim, dtype=dtype, device=device).transpose(1, 2) for _ in "kv")
        shape = (2, 1, 1, tokens) if mask == "keys" else (2, 1, tokens, tokens)
        closed = None if mask == "none" else torch.ones(shape, dtype=torch.bool, device=device)
        added = operators.added_mask(closed, dtype, operators.CLOSED)
        output, lse = CUDA[name](query, key, value, added, dim**-0.5)
    assert output.shape == query.shape
    assert output.dtype == dtype
    assert lse.shape == (2, 24, tokens)
    assert lse.dtype == torch.float32
    assert output.device.type == lse.device.type == device


@pytest.mark.slow
@pytest.mark.parametrize("mask", [False, True])
@LENGTHS
def test_the_cpus_operator_is_trusted_at_real_lengths(tokens, dim, mask):
    query, key, value = drawn(tokens=tokens, dim=dim)
    closed = closed_keys(tokens) if mask else None
    with warnings.catch_warnings(action="error"):
        attention_with_lse(query, key, value, closed)
    assert list(operators._TRUSTED.values()) == [(-math.inf,)]
