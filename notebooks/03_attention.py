# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention over space and time
#
# A clip has thousands of tokens, so an attention pattern is never made whole. It is asked questions, and the answers
# are exact. Here: who looks where in `tiny-crafter`, a world model of a game, and does it matter?
#
# The clips' first seven frames are clean; the last one is nearly pure noise and has to be guessed from the history and
# the player's action.

# %%
import torch

import vdinterp as vd
from vdinterp import analysis
from vdinterp.data import crafter

pipe = vd.load("tiny-crafter")
clips = vd.data.sample_clips("crafter", n=24)
noised = vd.NoisedClips(pipe, clips, noise_levels=(0.3, 0.9))
clips

# %% [markdown]
# ## From frame to frame
#
# Each small matrix is a head: from which frame (down) to which frame (across) its attention goes. It rides along with
# an ordinary forward pass. A dark diagonal is a head that stays in its own frame, a dark line beside it one that looks
# a frame back; at the higher noise level more of the last row (the noisy frame) leaves the diagonal.

# %%
mass = analysis.frame_mass(noised)
assert torch.allclose(mass.mass.sum(-1), torch.ones(()), atol=1e-5)
mass

# %% [markdown]
# ## By displacement
#
# When the player steps to the right, the picture scrolls: what is in a cell now was one cell to the right in the frame
# before. Clips are grouped by what their last action did: follow one head through the groups, and see whether its dark
# cell moves with the step.

# %%
last = noised.n_frames - 1
went = crafter.displacement(clips)[:, last]
steps = {"stay": (0, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
groups = {name: (went == torch.tensor(step)).all(1) for name, step in steps.items()}
groups = {name: chosen for name, chosen in groups.items() if chosen.any()}
kernels = analysis.displacement_kernel(noised, groups, radius=(1, 3, 3))
kernels.plot()[-1]

# %% [markdown]
# ## The action, or the outcome?
#
# A head that looks one step away could ask the action, or what will come of it. Moves into a wall tell them apart: a
# head that follows the outcome loses its score there.

# %%
implied = crafter.implied(clips)[:, : noised.n_frames]
scroll = analysis.scroll_heads(noised, implied[:, last], went)
assert "follows the" in scroll.summary(), "some head looks where the picture comes from"
best = scroll.to_frame().query("level == 0.9")["moved, implied"].max()
assert best > 0.5 and best > 20 * kernels.chance.max()
scroll.summary()

# %%
scroll.plot()[-1]

# %% [markdown]
# ## What each head does, and what is lost without it
#
# A role is where a head looks. The effect is what happens to the error when the head is replaced by its mean.

# %%
heads = analysis.head_table(noised, implied=implied)
table = heads.to_frame()
assert len(table[(table["level"] == 0.9) & (table["low"] > 0)]), "some head is needed"
heads.summary()

# %%
table[table["level"] == 0.9].sort_values("effect", ascending=False).head(6)

# %% [markdown]
# ## How much crosses patch boundaries?
#
# Attention mass off the own position, the same weighted by what the values add, and the effect of forbidding it. Mass
# alone says little: compare it with the effect.

# %%
crossing = analysis.patch_crossing(noised)
effect = crossing.pick("causal effect").query("layer == 'all'").set_index("level")["value"]
assert effect[0.9] > 5 * effect[0.3], "the noisier the frame, the more must come from elsewhere"
crossing.summary()

# %%
crossing.plot()[2]

# %% [markdown]
# ## Step by step
#
# The same statistics come for every denoising step while a clip is sampled. A row that darkens to the right is a head
# that turns to its own frame once there is something to see in it.

# %%
latents = noised.latents[:8]
sample = pipe.sample(latents[:, :last], steps=6, cond=clips.action[:8, : noised.n_frames], record=["frame_mass"])
own = torch.stack([cache.stack("frame_mass")[:, :, :, last, last].mean(1) for cache in sample.record.values()])
vd.plotting.heatmap(
    own.flatten(1).T,
    x=[str(step) for step in sample.record],
    y=[f"{layer}.{head}" for layer in range(pipe.model.cfg.n_layers) for head in range(pipe.model.cfg.n_heads)],
    title="Attention that the generated frame keeps to itself, step by step",
    x_title="denoising step (0 is the noisiest)",
    y_title="head",
    value_title="attention mass, 0 to 1",
)

# %% [markdown]
# ## Look around
#
# Click a patch of a frame to see where it looks; arrows move on. (Run the cell: nothing of it is saved with the
# notebook. `explorer.to_html("attention.html")` writes a page that works by itself.)

# %%
explorer = vd.AttentionExplorer.of(noised, clip=0, layer=2, head=2)
explorer

# %% [markdown]
# ## Any question of your own
#
# `cache["pattern", layer]` has `rows`, `columns`, `mass`, `pairs`, `weighted`, `top_keys`, `entropy`, `received`,
# `displacement_kernel` and `head_scores`; a relation is a function of two tokens' places. A cell darker than chance is
# a head with a taste for diagonals.

# %%
patterns = next(noised.patterns(0.9))
diagonal = {"one step diagonally": lambda q, k: ((k.row - q.row).abs() == 1) & ((k.col - q.col).abs() == 1)}
found = torch.stack([p.head_scores(diagonal)["one step diagonally"].mean(0) for p in patterns])
chance = patterns[0].uniform().head_scores(diagonal)["one step diagonally"].mean()
print(f"chance {chance:.3f}")
cell = noised.grid.index(7, 3, 2)
exact = patterns[2].rows([cell])[:, :, 0], patterns[2].materialize()[:, :, cell]
assert torch.allclose(*exact, atol=1e-6), "what is asked for and the whole matrix agree"
vd.plotting.layer_head(found, title="Attention one step diagonally away, any frame", value_title="mass")
