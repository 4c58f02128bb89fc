"""Every reduction of an attention pattern against the dense pattern that the model itself computes."""

from __future__ import annotations

import pytest
import torch
from factories import inputs, tiny_model
from hypothesis import given, settings, strategies as st

from vdinterp import MaskAttention
from vdinterp.grid import TokenGrid
from vdinterp.mask import Mask
from vdinterp.models import AttentionPattern, memory, query_keys as module

CASES = [("3d", 0, "attn"), ("space_time", 0, "attn"), ("space_time", 1, "attn"), ("causal", 1, "attn"),
         ("cross", 0, "attn"), ("cross", 1, "cross_attn"), ("table", 1, "attn")]  # fmt: skip


def over_clip(dense: torch.Tensor, axis: str, grid: TokenGrid) -> torch.Tensor:
    """A pattern in the shape of `hook_pattern`, as `[batch head query key]` over the tokens of the whole clip."""
    if axis == "3d":
        return dense
    batch, groups, heads = dense.shape[:3]
    whole = torch.zeros(batch, heads, grid.n_tokens, grid.n_tokens)
    label = grid.frame_of() if axis == "space" else grid.cell_of()
    for group in range(groups):
        tokens = (label == group).nonzero()[:, 0]
        whole[:, :, tokens[:, None], tokens] = dense[:, group]
    return whole


def case(kind: str, layer: int, sublayer: str, dtype: torch.dtype = torch.float32, masked: bool = False):
    """A pattern, and the dense one as the model computes it (float32 logits of the very same queries and keys)."""
    model = tiny_model(kind)
    given_inputs = inputs(model)
    interventions = [MaskAttention("own_frame", heads=[1])] if masked else []
    with torch.no_grad(), model.intervene(*interventions):
        _, cache = model.run_with_cache(**given_inputs)
    attention = model.sublayer(layer, sublayer)
    cached = cache.to(dtype=dtype)
    found = cached["pattern", layer, sublayer]
    q, k = (cached[name, layer, sublayer].float() for name in ("rot_q", "rot_k"))
    scores = attention.scores(q, k, cache.grid)
    if masked:
        scores = scores.masked_fill(~cache["mask", layer, sublayer], -torch.inf)
    axis = "3d" if sublayer == "cross_attn" else attention.axis
    return found, scores.softmax(-1), over_clip(scores.softmax(-1), axis, cache.grid), cache.grid


@pytest.fixture(params=["one chunk", "chunks"])
def chunked(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(module, "CHUNK_BYTES", 500)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "layer", "sublayer", "masked"), [*((*c, False) for c in CASES), (*CASES[0], True)])
def test_every_reduction_equals_the_dense_one(kind, layer, sublayer, masked, dtype) -> None:
    found, shaped, dense, _ = case(kind, layer, sublayer, dtype, masked)
    n_keys = dense.shape[-1]
    close(found.materialize(), shaped)
    queries = [7, 0, 17, -1, 7]
    close(found.rows(queries), dense[:, :, queries])
    close(found.pairs([3, 5, 3], [0, 2, 3]), dense[:, :, [3, 5, 3], [0, 2, 3]])
    entropy = torch.special.entr(dense).sum(-1)
    close(found.entropy(), entropy)
    values, keys = found.top_keys(2)
    close(values, dense.topk(2).values)
    close(dense.gather(-1, keys), values)

    labels = torch.arange(n_keys) % 3
    close(found.mass(labels), torch.stack([dense[..., labels == part].sum(-1) for part in range(3)], -1))
    uniform = (dense > 0).float()
    uniform = (uniform / uniform.sum(-1, keepdim=True)).sum(-2)
    close(found.received(), dense.sum(-2) / uniform)
    pairs = torch.tensor([[4, 1], [4, 2], [9, 3]])
    relations = {"pairs": pairs, "even": lambda q, k: (k.token % 2 == 0).expand(1, q.token.shape[1], -1)}
    if found.axis == "3d":
        scores = found.head_scores(relations)
        close(scores["pairs"], (dense[:, :, 4, 1] + dense[:, :, 4, 2] + dense[:, :, 9, 3]) / 2)
        close(scores["even"], dense[..., ::2].sum(-1).mean(-1))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("kind", "layer", "sublayer"), [c for c in CASES if c[2] == "attn"])
def test_frames_and_displacements(kind, layer, sublayer) -> None:
    found, _, dense, grid = case(kind, layer, sublayer)
    frames = torch.stack([dense[..., grid.frame_of() == frame].sum(-1) for frame in range(grid.n_frames)], -1)
    close(found.mass("frame"), frames)
    close(found.frame_mass(), frames.unflatten(2, (grid.n_frames, -1)).mean(3))
    same = grid.cell_of()[:, None] == grid.cell_of()
    group = torch.ones_like(same) if found.axis == "3d" else same
    group = grid.frame_of()[:, None] == grid.frame_of() if found.axis == "space" else group

    kernel = found.displacement_kernel()
    assert kernel.shape[2:] == (5, 3, 5)
    for dt, dy, dx in [(0, 0, 0), (-1, 0, 1), (2, -1, -2), (1, 1, 0), (-2, 0, 0)]:
        pairs = grid.displaced(dt, dy, dx) & group
        expected = dense[:, :, pairs].mean(-1) if pairs.any() else torch.zeros(2, 2)
        close(kernel[:, :, dt + 2, dy + 1, dx + 2], expected)
    close(found.displacement_kernel(radius=(1, 0, 1)), kernel[:, :, 1:4, 1:2, 1:4])

    relation = {"before": lambda q, k: (k.frame == q.frame - 1) & (k.row == q.row) & (k.col == q.col)}
    before = grid.displaced(-1, 0, 0)
    if found.axis == "space":
        with pytest.raises(ValueError, match="relates no query"):
            found.head_scores(relation)
        return
    concerned = before.any(-1)
    close(found.head_scores(relation)["before"], (dense * before).sum(-1)[..., concerned].mean(-1))
    allowed = (dense > 0).float()
    chance = (allowed / allowed.sum(-1, keepdim=True) * before).sum(-1)[..., concerned].mean(-1)
    close(found.uniform().head_scores(relation)["before"], chance)


def test_a_planted_head_is_found_and_uniform_attention_is_chance() -> None:
    grid = TokenGrid(4, 3, 3)
    at = grid.all_coordinates()
    eye = torch.eye(grid.n_tokens)
    target = [grid.index(t - 1, y, x) if t else grid.index(0, 0, 0) for t, y, x in at.tolist()]
    q = torch.stack([eye[target] * 200, eye * 0])[None, None]
    found = AttentionPattern(q, eye.expand(1, 1, 2, -1, -1), 1.0, None, grid)
    kernel = found.displacement_kernel()
    assert kernel[0, 0, 2, 2, 2] == pytest.approx(1) and kernel[0, 0].argmax() == 2 * 25 + 2 * 5 + 2
    close(kernel[0, 1], torch.full_like(kernel[0, 1], 1 / 36))
    before = {"before": lambda q, k: (k.frame == q.frame - 1) & (k.row == q.row) & (k.col == q.col)}
    close(found.head_scores(before)["before"], torch.tensor([[1.0, 1 / 36]]))
    close(found.uniform().head_scores(before)["before"], torch.full((1, 2), 1 / 36))
    assert found.entropy()[0, 0].max() < 1e-4
    close(found.entropy()[0, 1], torch.full((36,), 36.0).log())
    assert found.received()[0, 0, 0] == pytest.approx(10) and found.received()[0, 0, -1] == 0  # a sink; the last frame
    close(found.received()[0, 1], torch.ones(36))
    assert found.top_keys(1)[1][0, 0, :, 0].tolist() == target
    assert found.heads([-1]).n_heads == 1 and torch.equal(found.heads([1]).q, found.q[:, :, [1]])


def test_what_does_not_fit_is_refused_with_the_byte_count(monkeypatch) -> None:
    found, *_ = case("3d", 0, "attn")
    assert found.dense_bytes == 2 * 2 * 18 * 18 * 4 == found.estimate()["dense_bytes"]
    assert found.estimate()["flops"] == 2 * 2 * 2 * 18 * 18 * 12
    assert "3d: 2 clips, 2 heads, 1 x 18 queries" in repr(found) and "5.1 KiB" in repr(found)
    assert found.estimate()["row_bytes"] == 2 * 2 * 18 * 4
    monkeypatch.setattr(memory, "available_memory", lambda device: 2_000)
    with pytest.raises(MemoryError, match=r"5\.1 KiB, 2\.0 KiB are free.*force=True"):
        found.materialize()
    assert found.materialize(force=True).shape == (2, 2, 18, 18)
    for ask, what in (
        (lambda: found.rows(range(18)), "18 rows would take 5.1 KiB"),
        (lambda: found.mass(torch.arange(18)), "18 parts would take"),
        (lambda: found.top_keys(9), "9 top keys"),
        (lambda: found.displacement_kernel(), "radius"),
    ):
        with pytest.raises(MemoryError, match=what):
            ask()
    assert found.rows([3]).shape == (2, 2, 1, 18) and found.entropy().shape == (2, 2, 18)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("kind", "layer"), [("3d", 0), ("space_time", 0), ("space_time", 1), ("causal", 1)])
def test_only_the_queries_of_some_frames(kind, layer) -> None:
    found, _, dense, grid = case(kind, layer, "attn")
    asked = grid.frame_of() == 2
    same = grid.displaced(0, 0, 0)
    own = dense.diagonal(dim1=2, dim2=3)[:, :, asked].mean(-1)
    close(found.displacement_kernel(frames=[-1])[:, :, 2, 1, 2], own)
    scores = found.head_scores({"self": lambda q, k: q.token == k.token}, frames=[2])["self"]
    close(scores, (dense * same)[:, :, asked].sum(-1).mean(-1))
    with pytest.raises(ValueError, match=r"frames 3\.\.3 lie outside the 3"):
        found.displacement_kernel(frames=[3])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.rows([18]), "outside the 18"),
        (lambda p: p.rows([]), "No query token"),
        (lambda p: p.pairs([0, 1], [2]), "2 queries and 1 keys"),
        (lambda p: p.mass(torch.zeros(5, dtype=torch.long)), r"\[18\]"),
        (lambda p: p.mass(torch.zeros(18)), "float32"),
        (lambda p: p.top_keys(19), "1..18"),
        (lambda p: p.heads([2]), "heads 2..2 lie outside the 2"),
        (lambda p: p.heads([]), "No head was given"),
        (lambda p: p.rows([1.5]), "whole numbers"),
        (lambda p: p.rows(torch.tensor([True, False])), r"\[18\]; got \[2\]"),
        (lambda p: p.displacement_kernel(radius=(1, 1)), "three numbers"),
        (lambda p: p.head_scores({"a": [(0, 1)]}), "give a function"),
        (lambda p: p.head_scores({"a": lambda q, k: (k.token == q.token)[None]}), "same for every clip and head"),
        (lambda p: p.displacement_kernel(radius=(-1, 0, 0)), "radius"),
        (lambda p: p.head_scores({}), "No relation"),
        (lambda p: p.head_scores({"a": torch.zeros(3, 3, dtype=torch.long)}), r"\[n 2\]"),
        (lambda p: p.head_scores({"a": lambda q, k: q.frame - k.frame}), "booleans"),
    ],
)
def test_bad_questions(ask, message) -> None:
    found, *_ = case("3d", 0, "attn")
    with pytest.raises(ValueError, match=message):
        ask(found)


def test_text_has_no_place_in_the_video() -> None:
    found, *_ = case("cross", 1, "cross_attn")
    for ask in (lambda: found.displacement_kernel(), lambda: found.mass("frame")):
        with pytest.raises(ValueError, match="Text tokens"):
            ask()


def test_booleans_choose_tokens_and_frames() -> None:
    found, _, dense, grid = case("3d", 0, "attn")
    mask = grid.frame_of() == 1
    close(found.rows(mask), dense[:, :, mask])
    frames = torch.tensor([False, True, False])
    close(found.displacement_kernel(frames=frames), found.displacement_kernel(frames=[1]))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_tokens_of_joint_attention_are_a_part_of_their_own(dtype) -> None:
    grid, generator = TokenGrid(3, 2, 3), torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 1, 2, 18 + 4, 8, generator=generator).to(dtype) for _ in range(2))
    found = AttentionPattern(q, k, 0.5, None, grid)
    dense = (q.float()[:, 0] @ k.float()[:, 0].transpose(-1, -2) * 0.5).softmax(-1)
    assert found.n_text == 4 and found.n_keys == 22
    close(found.materialize(), dense)
    close(found.rows([20, 3]), dense[:, :, [20, 3]])
    parts = [*(slice(6 * frame, 6 * frame + 6) for frame in range(3)), slice(18, 22)]
    mass = torch.stack([dense[..., part].sum(-1) for part in parts], -1)
    close(found.mass(), mass)
    close(found.frame_mass(), mass[:, :, :18].unflatten(2, (3, 6)).mean(3))
    kernel = found.displacement_kernel()
    for step in [(0, 0, 0), (-1, 0, 1), (2, -1, -2)]:
        dt, dy, dx = (d + n - 1 for d, n in zip(step, grid.shape, strict=True))
        close(kernel[:, :, dt, dy, dx], dense[:, :, :18, :18][:, :, grid.displaced(*step)].mean(-1))
    text = found.head_scores({"text": lambda q, k: (k.frame < 0) & (q.frame >= 0)})["text"]
    close(text, dense[:, :, :18, 18:].sum(-1).mean(-1))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)),
    batch=st.integers(1, 2),
    n_heads=st.integers(1, 3),
    d_head=st.integers(1, 9),
    axis=st.sampled_from(["3d", "space", "time"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    masked=st.sampled_from(["no", "causal", "per head"]),
    chunk=st.sampled_from([64, 2**20]),
    seed=st.integers(0, 1000),
)
def test_reductions_equal_dense_ones_for_any_shape(
    sizes, batch, n_heads, d_head, axis, dtype, masked, chunk, seed
) -> None:
    grid, generator = TokenGrid(*sizes), torch.Generator().manual_seed(seed)
    groups = {"3d": 1, "space": grid.n_frames, "time": grid.tokens_per_frame}[axis]
    within = grid.n_tokens // groups
    q, k = (torch.randn(batch, groups, n_heads, within, d_head, generator=generator).to(dtype) for _ in range(2))
    mask = None
    if masked == "causal":
        mask = torch.ones(within, within, dtype=torch.bool).tril()[None, None, None]
    elif masked == "per head":
        mask = torch.rand(1, 1, n_heads, within, within, generator=generator) < 0.6
        mask |= torch.eye(within, dtype=torch.bool)
    logits = q.float() @ k.float().transpose(-1, -2) * 0.7
    shaped = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    dense = over_clip(shaped[:, 0] if axis == "3d" else shaped, axis, grid)
    found = AttentionPattern(q, k, 0.7, None if mask is None else Mask.given(mask), grid, axis)
    before, module.CHUNK_BYTES = module.CHUNK_BYTES, chunk
    try:
        close(found.materialize(), shaped[:, 0] if axis == "3d" else shaped)
        everything = range(grid.n_tokens)
        close(found.rows(everything), dense)
        close(found.columns(everything), dense)
        close(found.entropy(), torch.special.entr(dense).sum(-1))
        labels = torch.arange(grid.n_tokens) % 3
        close(found.mass(labels), dense @ torch.nn.functional.one_hot(labels).float())
        kernel = found.displacement_kernel()
        middle = tuple(size - 1 for size in sizes)
        close(kernel[:, :, middle[0], middle[1], middle[2]], dense.diagonal(dim1=2, dim2=3).mean(-1))
        values = torch.randn(batch, grid.n_tokens, n_heads, 2, generator=generator)
        summed = dense @ values.transpose(1, 2)
        close(found.weighted(values), summed)
        split = [lambda q, k: k.token % 2 == 0 + 0 * q.token, lambda q, k: k.token % 2 == 1 + 0 * q.token]
        close(sum(found.weighted(values, relation) for relation in split), summed)
        received = dense.sum(-2) / found.uniform().rows(everything).sum(-2)
        close(found.received(), torch.where(received.isfinite(), received, 0.0))
    finally:
        module.CHUNK_BYTES = before
