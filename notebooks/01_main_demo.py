# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # vdinterp: the main demo
#
# Load a trained video diffusion transformer, look at what is inside, change it, and see what that does.
# If you know TransformerLens you know most of this already: hooks have the names you expect, and a hook function is
# `(activation, hook) -> activation | None`.
#
# The model here is `tiny-induction`: half a million parameters, trained to denoise 16-frame clips of handwritten
# digits in which short snippets come back in random order. It runs on a laptop in milliseconds.

# %%
import torch

import vdinterp as vd

pipe = vd.load("tiny-induction")
model = pipe.model
pipe

# %% [markdown]
# ## Clips with ground truth
#
# `make_clips` knows what it made: which frame repeats which (`match`), how far back (`lag`), and whether a frame can be
# predicted at all. We take clips whose last frame follows from what came before. They play here, and under them their
# twins: the same clips with one frame changed.

# %%
clips = vd.data.make_clips("one_off", n=64, seed=7, lag=8)
latents = clips.latents  # [batch frame channel height width]
last, match = clips.n_frames - 1, int(clips.labels["match"][0, -1])
print("last frame", last, "repeats frame", match, "- and frame", last - 1, "repeats frame", match - 1)
clips

# %% [markdown]
# The same frame by frame: compare the last two frames of a row with the two that stand eight frames before them.

# %%
vd.plotting.filmstrip(
    {f"clip {i}": clips.video[i] for i in range(3)},
    title="Sequences of digits: the last two frames occurred once before, eight frames earlier",
)

# %% [markdown]
# ## A forward pass with every activation
#
# Noise is per frame: `0` is clean, `1` is pure noise. We hide the last frame (noise level 0.95) and let the model
# tell what it was. The network itself is fed a timestep, which `pipe.timestep` makes. `run_with_cache` keeps every
# activation by name, except the N x N ones, which the cache computes on demand.

# %%
levels = torch.zeros(len(clips), clips.n_frames)
levels[:, last] = 0.95
timestep = pipe.timestep(levels)
noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
noisy = pipe.add_noise(latents, levels, noise)

with torch.no_grad():
    pred, cache = model.run_with_cache(noisy, timestep)
    x0 = pipe.denoise(noisy, levels)  # the same forward pass, as an estimate of the clean clip

print(cache)
print("before running: ", model.estimate_cache(batch=len(clips)) / 2**20, "MiB estimated")
print("z of layer 2:   ", tuple(cache["z", 2].shape), "batch pos head d_head")
print("last resid_post:", tuple(cache["resid_post", -1].shape))
with torch.no_grad():
    identity = model.run_with_hooks(noisy, timestep, fwd_hooks=[("resid_post", lambda resid, hook: resid)])
assert torch.equal(identity, pred), "a hook that changes nothing must change nothing"
model.describe_hooks().head(12)

# %% [markdown]
# In the last column, the second row is noise; the third should show the digit of the first.

# %%
variance = (latents[:, last] - latents[:, last].mean(0)).square().mean()
error = (x0[:, last] - latents[:, last]).square().mean() / variance
print(f"error of the hidden frame: {error:.2f} of its variance (1 would be guessing the average digit)")
assert error < 0.35, "the model repeats what it saw once"

shown = {"truth": clips.video[0], "what the model sees": ((noisy[0] + 1) / 2).clamp(0, 1), "x0": pipe.decode(x0)[0]}
vd.plotting.filmstrip(shown, title="The last frame is hidden under noise, and comes back")

# %% [markdown]
# ## Where does the answer come from?
#
# The noisy frame must look at the frame that followed its predecessor's twin: frame `match`. For each head: the
# attention mass from the hidden frame to that frame. Most heads look elsewhere; look for the dark cells in the last
# layer.

# %%
# a pattern is never held whole: it answers what it is asked, here the mean mass from frame to frame
mass = torch.stack([cache["pattern", layer].frame_mass()[:, :, last].mean(0) for layer in range(model.cfg.n_layers)])
chance = 1 / clips.n_frames
best_layer, best_head = divmod(int(mass[:, :, match].argmax()), model.cfg.n_heads)
print(
    f"head {best_layer}.{best_head} puts {mass[best_layer, best_head, match]:.2f} of its attention on the frame to copy"
)
print(f"uniform attention would put {chance:.2f} there")
assert mass[best_layer, best_head, match] > 3 * chance

vd.plotting.layer_head(
    mass[:, :, match],
    title="Attention from the hidden frame to the frame that it repeats",
    value_title="attention mass, 0 to 1",
)

# %% [markdown]
# The best head on one clip: the bright patches should lie in one frame, the one to copy.

# %%
patches = model.grid().tokens(frames=[last])
rows = cache["pattern", best_layer].rows(patches)[0, best_head].mean(0).view(model.grid().shape)
vd.plotting.attention_strip(
    clips.video[0],
    {f"head {best_layer}.{best_head}": rows},
    title=f"Where head {best_layer}.{best_head} looks from the hidden frame (mean over its four patches)",
)

# %% [markdown]
# ## Is it the cause?
#
# A high score is not an effect. Replace the head's output by its mean and look at the error; do the same to every
# other head. Where a cell is dark, the model needs that head; compare with the map of attention above.

# %%
_, reference = model.run_with_cache(pipe.add_noise(latents.flip(0), levels, noise), timestep, names="z")


def hidden_frame_error(*interventions) -> float:
    """Error of the hidden frame over its variance, under interventions."""
    with torch.no_grad(), model.intervene(*interventions):
        estimate = pipe.denoise(noisy, levels)
    return float((estimate[:, last] - latents[:, last]).square().mean() / variance)


effect = (
    torch.tensor(
        [
            [
                hidden_frame_error(
                    vd.Ablate(f"blocks.{layer}.attn.hook_z", heads=[head], mode="mean", reference=reference)
                )
                for head in range(model.cfg.n_heads)
            ]
            for layer in range(model.cfg.n_layers)
        ]
    )
    - hidden_frame_error()
)

assert effect.max() > 0.1, "some head is needed"
vd.plotting.layer_head(
    effect,
    title="Error that mean-ablating one head adds",
    value_title="added error, share of the frame's variance",
)

# %% [markdown]
# ## Your own hook
#
# Any function will do. This one turns the head off by hand, and counts how often it was called; `hook.ctx` carries the
# denoising step while sampling.

# %%
calls = []


def silence(z, hook):
    """z is [batch pos head d_head]; return the changed tensor, or None to leave it alone."""
    calls.append((hook.name, hook.ctx.get("step")))
    z[:, :, best_head] = 0
    return z


with torch.no_grad():
    changed = model.run_with_hooks(noisy, timestep, fwd_hooks=[(f"blocks.{best_layer}.attn.hook_z", silence)])
print("called:", calls)
assert calls == [(f"blocks.{best_layer}.attn.hook_z", None)]
print("prediction changed by", float((changed - pred).abs().max()))

# %% [markdown]
# ## Sampling with an intervention
#
# `sample` denoises from pure noise; the same seed gives the same noise, so the two clips differ by the intervention
# alone. `at_steps` limits it to some of the steps, `record` keeps activations of each. A sample plays, like clips.

# %%
context = latents[:8, :last]
ablation = vd.Ablate(f"blocks.{best_layer}.attn.hook_z", heads=[best_head], mode="mean", reference=reference)
intact = pipe.sample(context, steps=10, seed=0, record="z")
without = pipe.sample(context, steps=10, seed=0, interventions=[ablation])
early = pipe.sample(context, steps=10, seed=0, interventions=[ablation], at_steps=range(5))
assert torch.equal(intact.latents[:, :last], context), "the context is given, not generated"
assert list(intact.record) == list(range(10)), "a cache a step"
intact

# %% [markdown]
# Right of the dotted line is what was generated: with the head it is the digit of the first row, without it is not.

# %%
vd.plotting.filmstrip(
    {
        "truth": clips.video[0],
        "generated": intact.video[0],
        f"without head {best_layer}.{best_head}": without.video[0],
        "... in steps 0-4 only": early.video[0],
    },
    title="The last frame generated from pure noise in 10 steps",
    n_context=last,
)
