"""Linear probes: what is planted is found where it was put, nothing is found where nothing is, and nothing leaks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from planted import N_COLS, N_FRAMES, N_ROWS

import vdinterp as vd
import vdinterp.data.crafter as game
from vdinterp.analysis import NoisedClips, probes
from vdinterp.analysis.probes.folds import PENALTIES, Held, Scorer
from vdinterp.analysis.probes.samples import activations, around, latents, make_samples, site_names, untrained
from vdinterp.results import rows_of

N, WIDTH = 24, 20  # clips, d_model
SITE = ("resid_post", 1)
SHAPE = (N, N_FRAMES, N_ROWS, N_COLS)


def noised(n: int = N, **options: Any) -> NoisedClips:
    """All clips in one batch, so that a planted activation knows whose it is. Half of the four frames are noised."""
    return NoisedClips(planted.pipe(), planted.clips(n), **{"n_context": 2, "batch": n, **options})


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_classes(*shape: int, n: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))


def directions(n: int) -> torch.Tensor:
    """Orthonormal rows."""
    return torch.linalg.qr(drawn(WIDTH, n, seed=2)).Q.T


def put(value: torch.Tensor, seed: int = 3) -> vd.Custom:
    """The stream after block 1 becomes noise of size 1 plus `value` `[clip frame row col d_model]`."""
    value = value.flatten(1, 3)
    return vd.Custom(SITE, lambda x, hook: drawn(*x.shape, seed=seed) + value)


def score(result: probes.ProbeResult, kind: str = "probe") -> Any:
    return rows_of(result.table, kind=kind).iloc[0]


def fit(noised: NoisedClips, labels: torch.Tensor, *planted: Any, **options: Any) -> probes.ProbeResult:
    with noised.model.intervene(*planted):
        return probes.fit(noised, labels, **{"layers": [1], "folds": 3, **options})


# What is there is found


@pytest.mark.parametrize("n", [2, 3])
def test_a_planted_class_is_found_with_its_direction_and_no_baseline_finds_it(n) -> None:
    labels, basis = drawn_classes(*SHAPE, n=n), directions(n) * 3
    result = fit(noised(), labels, put(basis[labels]))
    probe = score(result)
    assert probe["value"] > 0.93 and probe["low"] > 0.9 and probe["chance"] == 1 / n
    assert probe["n"] == N * 2 * N_ROWS * N_COLS and probe["clips"] == N
    for kind in probes.BASELINES:
        other = score(result, kind)
        assert abs(other["value"] - 1 / n) < 0.1
        assert other["gain"] == pytest.approx(probe["value"] - other["value"])
        assert other["gain_low"] > 0.3
    assert score(result, "constant")["value"] == pytest.approx(1 / n)
    assert "It beats all that is made of the input" in result.summary()
    # The best direction for a class among classes of one noise is its mean less the mean of the others.
    wanted = basis - basis.mean(0)
    cosine = torch.nn.functional.cosine_similarity(result.directions(1), wanted)
    assert (cosine > 0.93).all()
    assert result.names == [str(i) for i in range(n)] and result.subspace(1).shape == (n - 1, WIDTH)
    inside = wanted @ result.subspace(1).T @ result.subspace(1)
    torch.testing.assert_close(inside, wanted, atol=0.5, rtol=0)


def test_planted_numbers_are_found_in_pooled_frames() -> None:
    labels, basis = drawn(N, N_FRAMES, 2, seed=5), directions(2)
    value = (labels @ basis)[:, :, None, None].expand(-1, -1, N_ROWS, N_COLS, -1)
    result = fit(noised(n_context=0), labels, put(value), names=["row", "col"], what="place")
    probe = score(result)
    assert probe["value"] > 0.85 and probe["chance"] == 0 and probe["n"] == N * N_FRAMES
    assert 0.8 < probe["low"] <= probe["value"] <= probe["high"] <= 1
    for kind in probes.BASELINES:
        assert score(result, kind)["value"] < 0.1
    assert (torch.nn.functional.cosine_similarity(result.directions(1), basis) > 0.85).all()
    assert (torch.nn.functional.cosine_similarity(result.association[0, 0], basis) > 0.95).all()
    assert result.subspace(1).shape == (2, WIDTH) and "R^2" in result.unit and "place: 2 numbers" in result.summary()
    pooled = (drawn(N, 48, WIDTH, seed=3).view(*SHAPE, -1) + value).mean((2, 3))
    assert (result.readout(pooled, 1) - labels).square().mean() < 0.1


def test_the_mask_chooses_the_tokens() -> None:
    """A class that only one cell shows is found there, and in the mean of that cell, and nowhere else."""
    labels, here = drawn_classes(N, N_FRAMES), torch.zeros(N_ROWS, N_COLS, dtype=torch.bool)
    here[1, 2] = True
    value = (labels[:, :, None, None] * here)[..., None] * directions(1)[0] * 6
    tokens = labels[:, :, None, None].expand(SHAPE)
    for given in (tokens, labels):
        assert score(fit(noised(), given, put(value), mask=here))["value"] > 0.95
    assert score(fit(noised(), tokens, put(value), mask=~here, max_tokens=8))["value"] < 0.65
    result = fit(noised(), labels, put(value), mask=here[None, None].expand(SHAPE), frames=[1, -1])
    assert score(result)["value"] > 0.95 and result.meta["frames_probed"] == [1, 3]


def test_samples_are_the_models_own_activations() -> None:
    """Tokens, pooled frames, activations of frames, and those with a head axis, in whatever batches they come."""
    given, labels = noised(10, batch=3), drawn_classes(10, *SHAPE[1:])
    mask = drawn_classes(10, *SHAPE[1:], seed=8).bool()
    samples = make_samples(given, labels, "noised", mask, 7, 2, 0)
    assert (np.bincount(samples.clip) == 7).all() and samples.n_available == int(mask[:, 2:].sum())
    chosen = torch.from_numpy(samples.clip), torch.from_numpy(samples.place)
    assert mask.flatten(1)[chosen].all() and (samples.place >= 24).all()
    np.testing.assert_array_equal(samples.y, labels.flatten(1)[chosen])
    (cache,) = noised(10).caches(0.9, ["resid_post", "z", "attn.mod.gate"])
    for site in ("resid_post", "z"):
        names, channels = site_names(given.model, site, None)
        found = activations(given, 0.9, names, samples)
        for layer in (0, 1):
            expected = cache[site, layer][chosen].flatten(1)
            np.testing.assert_allclose(found[layer], expected, atol=1e-6)
        assert channels == tuple(cache[site, 0].shape[2:])
    frames = make_samples(given, labels[:, :, 0, 0], "clean", mask, 7, 2, 0)
    at = torch.from_numpy(frames.clip), torch.from_numpy(frames.place)
    found = activations(given, 0.9, {1: "blocks.1.hook_resid_post"}, frames)[1]
    weight = mask.float() / mask.sum((2, 3), keepdim=True)
    pooled = (cache["resid_post", 1].view(10, 4, 3, 4, -1) * weight[..., None]).sum((2, 3))
    np.testing.assert_allclose(found, pooled[at], atol=1e-6)
    gate = activations(given, 0.9, {1: "blocks.1.attn.mod.hook_gate"}, frames)[1]
    np.testing.assert_allclose(gate, cache["mod.gate", 1][at], atol=1e-6)
    noisy = given.inputs(0.9, slice(0, 10)).noisy.flatten(1)
    np.testing.assert_array_equal(latents(given, samples, 0.9)[:, 0], noisy[chosen])
    np.testing.assert_array_equal(latents(given, samples, None)[:, 0], given.latents.flatten(1)[chosen])
    assert latents(given, samples, 0.9, "neighbours").shape == (70, 18)
    assert latents(given, samples, 0.9, "earlier").shape == (70, 27), "no actions: the frame two before beside it"


def test_neighbours_are_the_patches_around_in_this_frame_and_the_one_before() -> None:
    patches = drawn(2, 3, 2, 3, 4)
    found = around(patches)
    padded = torch.nn.functional.pad(patches, (1, 1, 1, 1, 0, 0, 1, 0))
    for frame, row, col in ((0, 0, 0), (1, 2, 3), (2, 1, 2)):
        window = padded[:, frame : frame + 2, :, row : row + 3, col : col + 3].flip(1)
        torch.testing.assert_close(found[:, frame, :, row, col], window.flatten(1))


def test_the_baseline_knows_where_the_action_moves_the_frame_before() -> None:
    """A label that the frame before tells, moved by the action: no network is needed, and the neighbours alone are not
    enough."""
    steps = drawn_classes(60, N_FRAMES, n=2, seed=9)
    action = torch.eye(2)[steps]
    pipe, clips = planted.pipe(d_action=2), planted.clips(60, action=action)
    given = NoisedClips(pipe, clips, n_context=3, batch=60)
    before = clips.video[:, 2, 0]
    moved = torch.where(steps[:, 3, None, None] == 0, before.roll(1, -1), before.roll(-1, -1))
    labels = torch.zeros(60, *SHAPE[1:], dtype=torch.long)
    labels[:, 3] = (moved > 0.5).long()
    inside = torch.zeros(N_ROWS, N_COLS, dtype=torch.bool)
    inside[:, 1:-1] = True
    result = probes.fit(given, labels, layers=[1], mask=inside, folds=3)
    assert score(result, "earlier frames, actions")["value"] > 0.85
    assert score(result, "noisy input, neighbours")["value"] < 0.8
    encoded = pipe.encode(clips.video)
    found = around(encoded, 2, 2)
    assert float(found[:, :2].abs().max()) == 0 and torch.equal(found[:, 2, 4], encoded[:, 0, 0])


def test_shuffled_weights_come_first() -> None:
    """What they hold as well, training did not put there."""
    result = fit(noised(), drawn_classes(*SHAPE))
    assert (
        list(result.table["kind"].unique()[:2]) == ["probe", "untrained"]
        and next(iter(probes.BASELINES)) == "untrained"
    )
    line = result.summary().splitlines()[-1]
    assert line.index("untrained") < min(line.index(kind) for kind in ("shuffled ", "noisy input"))
    for word in ("carries", "knows"):
        assert word not in result.summary()


# What is not there is not


def test_labels_that_are_constant_in_a_clip_do_not_leak() -> None:
    """Tokens of one clip are alike and share a label, which says nothing of other clips: folds of tokens would find it,
    folds of clips do not."""
    labels = drawn_classes(N).view(-1, 1, 1, 1).expand(SHAPE)
    own = drawn(N, 1, 1, 1, WIDTH, seed=4).expand(*SHAPE, -1) * 3
    result = fit(noised(), labels, put(own))
    probe = score(result)
    assert probe["low"] < 0.5 < probe["high"] + 0.15 and probe["value"] < 0.65
    assert "**A baseline" in result.summary()
    x = (own + drawn(*SHAPE, WIDTH)).flatten(0, 3).numpy()
    leaky = Scorer(labels.flatten().numpy(), np.arange(labels.numel()), 5, 0)
    assert leaky(x).score(leaky.draws)[0] > 0.9


def test_shuffled_labels_keep_what_the_place_tells_and_lose_the_rest() -> None:
    """Labels of whole clips are shuffled: a class that lies in the same place in all of them is found all the same."""
    labels = torch.arange(N_COLS).expand(SHAPE) // 2
    value = directions(2)[labels] * 5
    result = fit(noised(), labels, put(value))
    assert score(result, "shuffled")["value"] > 0.95 and abs(score(result, "shuffled")["gain"]) < 0.05
    mask = drawn_classes(*SHAPE, seed=6).bool()
    own = drawn_classes(N).view(-1, 1, 1, 1).expand(SHAPE)
    samples = make_samples(noised(), own, "noised", mask, 24, 2, 0)
    first = [np.unique(samples.shuffled[samples.clip == clip]) for clip in range(N)]
    assert all(len(labels) == 1 for labels in first)  # another clip's, whatever the masks are
    assert sorted(int(label[0]) for label in first) == sorted(own[:, 0, 0, 0].tolist())


def test_a_fold_is_fitted_without_a_look_at_its_clips() -> None:
    rng = np.random.default_rng(0)
    clip, x = np.repeat(np.arange(20), 6), rng.normal(size=(120, 5))
    for y in (rng.integers(3, size=120), rng.normal(size=(120, 2))):
        scorer = Scorer(y, clip, 4, 0)
        assert all(len(np.unique(scorer.fold[clip == one])) == 1 for one in range(20))
        test = scorer.fold == 1
        one = scorer.fit(x, y, ~test)
        changed_y = y.copy()
        changed_y[test] = changed_y[test][::-1]
        other = scorer.fit(np.where(test[:, None], 1e6, x), changed_y, ~test)
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)


def test_fits_are_those_of_scikit_learn_on_standardised_features() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)) * [1, 10, 0.1, 0] + 3
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    numbers = rng.normal(size=(200, 2)) + x[:, :2]
    scorer = Scorer(numbers, np.repeat(np.arange(20), 10), 4, 0)
    for penalty in PENALTIES:
        expected = linear_model.Ridge(alpha=penalty * 200).fit(z, numbers).predict(z)
        np.testing.assert_allclose(scorer._linear(x, numbers, penalty)(x), expected, atol=1e-6)
    for n in (2, 3):
        y = np.digitize(x[:, 0] + rng.normal(size=200), [3, 3.5][: n - 1])
        found = Scorer(y, np.repeat(np.arange(20), 10), 4, 0)._linear(x, y, 0.01)(x)
        model = linear_model.LogisticRegression(C=1 / 2, class_weight="balanced", tol=1e-6).fit(z, y)
        likely = torch.tensor(found).softmax(-1).numpy()
        np.testing.assert_allclose(likely, model.predict_proba(z), atol=5e-3)


def test_a_class_that_a_fold_never_saw_is_never_said() -> None:
    y = np.array([0, 1, 2] * 4)
    scorer = Scorer(y, np.arange(12), 3, 0)
    x = np.eye(3)[y]
    found = scorer._linear(x[y > 0], y[y > 0], 0.1)(x)
    assert (found.argmax(1) > 0).all()
    assert (scorer._linear(x[y == 2], y[y == 2], 0.1)(x).argmax(1) == 2).all()


@pytest.mark.parametrize("is_class", [True, False])
def test_intervals_cover_the_true_score(is_class) -> None:
    """Clips of unequal difficulty; the true score is that of infinitely many."""
    rng, covered, scorer = np.random.default_rng(0), 0, Scorer(np.arange(80) % 2, np.repeat(np.arange(40), 2), 4, 0)
    for _ in range(200):
        if is_class:
            right = rng.binomial(6, rng.beta(4, 2, size=(40, 1)), size=(40, 2))
            held, truth = Held(np.stack([right, np.full((40, 2), 6)], 1), True), 4 / 6
        else:
            signal, noise = rng.normal(size=(40, 6)) * 2, rng.normal(size=(40, 6)) * rng.choice([0.5, 1.3], (40, 1))
            y = signal + noise
            sums = np.stack([np.square(noise).sum(1), np.square(y).sum(1), y.sum(1), np.full(40, 6.0)], 1)
            size = (0.5**2 + 1.3**2) / 2
            held, truth = Held(sums[..., None], False), 4 / (4 + size)
        value, low, high = scorer.interval(held.score(scorer.draws))
        assert low <= value <= high
        covered += low <= truth <= high
    assert 0.88 <= covered / 200 <= 0.99


# Directions


def test_steering_moves_the_readout_by_the_strength_times_the_weight() -> None:
    given, labels, basis = noised(), drawn_classes(*SHAPE, n=3), directions(3) * 5
    result = fit(given, labels, put(basis[labels]))
    for c in range(3):
        steer = vd.Steer(SITE, result.directions(1)[c], 2.5)
        before, after = [], []
        for found, changes in ((before, []), (after, [steer])):
            with given.model.intervene(*changes):
                (cache,) = given.caches(0.9, [SITE])
            found.append(result.readout(cache[SITE], 1))
        change = (after[0] - before[0])[..., c]
        torch.testing.assert_close(change, torch.full_like(change, 2.5 * float(result.weight[0, 0, c].norm())))


@pytest.mark.parametrize(("n", "mode"), [(2, "zero"), (4, "mean")])
def test_erasing_the_subspace_leaves_nothing_to_a_new_probe(n, mode) -> None:
    """Fitted and erased on some clips, refitted on others, whose noise is correlated with the class directions: erasing
    what the probe reads is then not enough, erasing the differences of means is."""
    basis, along = directions(n) * 3, directions(n + 1)[[0, n]].sum(0) * 4  # noise that a probe cancels

    def plant(seed: int) -> tuple[torch.Tensor, vd.Custom]:
        labels = drawn_classes(*SHAPE, n=n, seed=seed)
        return labels, put(basis[labels] + drawn(*SHAPE, 1, seed=seed) * along, seed=seed + 50)

    labels, planted_there = plant(7)
    first = fit(noised(), labels, planted_there, max_tokens=100)
    given, (labels, planted_there) = noised(), plant(11)
    with given.model.intervene(planted_there):
        (cache,) = given.caches(0.9, [SITE])
    reference = {"reference": cache} if mode == "mean" else {}
    scores = {}
    for name, basis_of in (("subspace", first.subspace(1)), ("directions", first.directions(1)[: n - 1])):
        erase = vd.Ablate(SITE, mode=mode, subspace=basis_of, **reference)
        scores[name] = score(fit(given, labels, planted_there, erase))["value"]
    assert score(first)["value"] > 0.8
    assert abs(scores["subspace"] - 1 / n) < 0.12 and scores["directions"] > scores["subspace"] + 0.05


def test_a_site_with_heads_can_be_steered_but_has_no_subspace() -> None:
    given, labels = noised(), drawn_classes(*SHAPE)
    result = fit(given, labels, site="z")
    directions = result.directions(1)
    assert directions.shape == result.weight[0, 0].shape == (2, 2, 48)
    torch.testing.assert_close(directions.flatten(1).norm(dim=1), torch.ones(2))
    with given.model.intervene(vd.Steer(("z", 1), directions[0], 1.0)):
        given.x0(0.9)
    assert result.readout(torch.zeros(5, 2, 48), 1).shape == (5, 2)
    with pytest.raises(ValueError, match="head axis"):
        result.subspace(1)
    with pytest.raises(ValueError, match=r"must end in \[2, 48\]"):
        result.readout(torch.zeros(5, 48), 1)


def test_untrained_weights_are_the_models_own_in_another_order() -> None:
    given = noised(4)
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    twin = untrained(given, 0)
    for name, value in twin.model.named_parameters():
        own = given.model.state_dict()[name]
        assert torch.equal(own, before[name])
        assert torch.equal(value.flatten().sort().values, own.flatten().sort().values)
    assert twin.pipe is not given.pipe and twin.latents is given.latents
    assert not torch.equal(twin.x0(0.9), given.x0(0.9))
    assert torch.equal(twin.x0(0.9), untrained(given, 0).x0(0.9))


# Results


def test_round_trip_figures_and_wording(tmp_path) -> None:
    given = noised(noise_levels=(0.3, 0.9))
    labels, basis = drawn_classes(*SHAPE, n=3) + 1, directions(4) * 5
    names = ["none", "grass", "water", "stone"]
    result = fit(given, labels, put(basis[labels]), layers=[0, -1], names=names, what="material")
    assert len(result.table) == 2 * 2 * 8 and result.layers == [0, 1] and result.names == names[1:]
    loaded = vd.Result.load(result.save(tmp_path))
    assert type(loaded) is probes.ProbeResult
    pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    for name in ("weight", "bias", "association"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert loaded.summary() == result.summary() and loaded.meta == result.meta
    torch.testing.assert_close(loaded.directions(1, 0.9), result.directions(1, 0.9))
    figures = result.plot()
    assert len(figures) == 1 + 2 + 2 and all("material, read from resid_post" in title for title in figures)
    at_level = next(figure for title, figure in figures.items() if title.endswith("noise level 0.9"))
    drawn: Any = at_level.data
    named = {trace.name: trace for trace in drawn if trace.name}
    assert set(named) == {"probe", *probes.BASELINES} - {"constant"}
    assert named["noisy input"].line.dash == "dash" and named["shuffled"].line.dash == "dot"
    assert result.values().shape == (2, 2) and (result.values()[1] > 0.95).all()
    assert (result.values("noisy input")[0] == result.values("noisy input")[1]).all()  # in every layer's rows
    assert "chance 0.333" in result.summary() and "in layer 1" in result.summary()
    with pytest.raises(KeyError, match=r"no probe of layer 2 at level 0\.9: layers \[0, 1\]"):
        result.directions(2, 0.9)
    with pytest.raises(KeyError, match=r"levels \[0\.3, 0\.9\]"):
        result.subspace(1)
    with pytest.raises(KeyError, match="kinds probe, untrained, shuffled"):
        result.values("prob")


def test_the_same_seed_gives_the_same_numbers_whatever_the_batch() -> None:
    labels = drawn_classes(*SHAPE)
    one, other = (fit(noised(batch=batch), labels, max_tokens=5) for batch in (24, 7))
    pd.testing.assert_frame_equal(one.table, other.table, atol=0.05)
    assert one.meta["samples"] == N * 5 and one.meta["samples_available"] == N * 24
    assert one.meta["frames_probed"] == [2, 3] and one.meta["pooled"] is False
    pd.testing.assert_frame_equal(one.table, fit(noised(), labels, max_tokens=5).table)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "labels": ({"labels": drawn_classes(N, 4, 3, 3)}, ValueError, r"shape \[24, 4, 3, 3\] fit neither.*\[24 4 3 4\]"),
    "one label a clip": ({"labels": drawn_classes(N)}, ValueError, r"give \[clip frame row col\]"),
    "list": ({"labels": [[0, 1]]}, ValueError, "labels are list"),
    "one-hot": ({"labels": drawn_classes(N, 4, 5)}, ValueError, r"labels\.argmax\(-1\)"),
    "one class": ({"labels": torch.ones(SHAPE, dtype=torch.long)}, ValueError, "every label is 1"),
    "negative": ({"labels": drawn_classes(*SHAPE) - 1}, ValueError, "-1 is among them: leave it out with mask="),
    "nan": ({"labels": drawn(*SHAPE) / 0 * 0}, ValueError, "labels are NaN or infinite"),
    "constant": ({"labels": torch.zeros(N, 4, 2)}, ValueError, "the same everywhere"),
    "rare": (
        {"labels": drawn_classes(*SHAPE) + 2 * (torch.arange(N) == 3).view(-1, 1, 1, 1)},
        ValueError,
        r"classes \[2, 3\] occur in fewer clips than there are folds \(5\)",
    ),
    "folds": ({"folds": 13}, ValueError, "24 clips have something to probe: 13 folds need at least 26"),
    "one fold": ({"folds": 1}, ValueError, "folds must be a whole number in 2"),
    "tokens": ({"max_tokens": 0}, ValueError, "max_tokens must be a whole number in 1"),
    "site": ({"site": "resid_pots"}, KeyError, "resid_post"),
    "no layer's": ({"site": "hook_cond"}, KeyError, "No hook is called"),
    "no name": ({"site": ("resid_post", 1)}, ValueError, "give the name of an activation"),
    "statistic": ({"site": "frame_mass"}, ValueError, "has the axes batch head frame frame"),
    "pattern": ({"site": "pattern"}, ValueError, "has the axes batch head query key"),
    "of frames": ({"site": "mod.gate"}, ValueError, "one vector a frame: give labels of frames"),
    "layer": ({"layers": [2]}, KeyError, "No layer 2"),
    "layers": ({"layers": []}, ValueError, "give a list of layers"),
    "mask": ({"mask": torch.ones(SHAPE)}, ValueError, "mask is torch.float32"),
    "mask shape": ({"mask": torch.ones(4, 3, dtype=torch.bool)}, ValueError, r"mask of shape \[4, 3\]"),
    "empty mask": ({"mask": torch.zeros(SHAPE, dtype=torch.bool)}, ValueError, "nothing to probe"),
    "frames": ({"frames": "target"}, ValueError, "give 'noised', 'clean' or a list"),
    "frame": ({"frames": [4]}, ValueError, "the clips have 4"),
    "names": ({"names": ["a"]}, ValueError, "a name for every number from 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_pass(case, monkeypatch) -> None:
    given = noised()
    options, error, message = BAD[case]
    monkeypatch.setattr(given, "cache", lambda *_: pytest.fail("computed something"))
    monkeypatch.setattr("vdinterp.analysis.probes.fitting.untrained", lambda *_: pytest.fail("computed something"))
    with pytest.raises(error, match=message):
        probes.fit(given, **{"labels": drawn_classes(*SHAPE), **options})


def test_no_clean_frame_and_no_scikit_learn(monkeypatch) -> None:
    with pytest.raises(ValueError, match="no frame is clean: n_context is 0"):
        probes.fit(noised(n_context=0), drawn_classes(*SHAPE), frames="clean")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'vdinterp\[probes\]'"):
        probes.fit(noised(), drawn_classes(*SHAPE))
    assert score(probes.fit(noised(), drawn(N, N_FRAMES), layers=[1]))["n"] == N * 2  # numbers need none of it


# A trained model


def test_whether_the_move_will_succeed_can_be_read_off_tiny_crafter() -> None:
    """At almost pure noise, in the player's cell: neither the input nor shuffled weights tell as much."""
    pipe, clips = vd.load("tiny-crafter"), vd.data.sample_clips("crafter", n=72, n_frames=8)
    cell = torch.zeros(7, 9, dtype=torch.bool)
    cell[3, 4] = True
    moves = (game.implied(clips) != 0).any(-1)
    labels = game.moved(clips)[:, :, None, None].expand(-1, -1, 7, 9)
    found = probes.fit(NoisedClips(pipe, clips), labels, layers=[1], mask=moves[:, :, None, None] & cell)
    assert score(found)["low"] > 0.8
    for kind in ("untrained", "shuffled", "noisy input", "noisy input, neighbours", "earlier frames, actions"):
        assert score(found, kind)["gain_low"] > 0.1
