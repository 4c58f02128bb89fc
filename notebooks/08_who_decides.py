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
# # Who decides whether the picture scrolls?
#
# `tiny-crafter` predicts the next frame of a game from the frames before and the action. After a move the picture
# scrolls by one cell, unless something stands in the way: then it stays. One head, 2.0, looks where a pixel comes
# *from*. It follows the action. What tells it that the way is blocked? From question to circuit: where is it known,
# who writes it, is it used?
#
# The contrast changes one thing: clips whose last step succeeded, and the same clips with stone painted into the one
# cell that the step leads to, in all earlier frames. Action, noise and all other cells are the same.

# %%
import pandas as pd
import torch

import vdinterp as vd
from vdinterp.data import crafter
from vdinterp.data.crafter_edit import facing, with_facing

pipe = vd.load("tiny-crafter")
model, grid = pipe.model, pipe.model.grid(8)
recorded = vd.data.sample_clips("crafter", n_frames=8)
clips = recorded[crafter.moved(recorded)[:, -1].nonzero()[:16, 0]]
level, last = 0.9, 7
with torch.no_grad():
    free = pipe.encode(clips.video)
    versions = {name: pipe.encode(with_facing(clips, name).video) for name in ("stone", "water", "tree", "sand")}


def scrolled(x0):
    """How far the last frame is from the one before (0) to the scrolled one (1)."""
    way = free[:, last] - free[:, last - 1]
    return (((x0[:, last] - free[:, last - 1]) * way).sum((1, 2, 3)) / way.square().sum((1, 2, 3))).mean().item()


noise = torch.randn(free.shape, generator=torch.Generator().manual_seed(0))
noise_levels = torch.zeros(free.shape[:2])
noise_levels[:, last] = level
with torch.no_grad():
    behaviour = {
        name: scrolled(pipe.denoise(pipe.add_noise(latents, noise_levels, noise), noise_levels, cond=clips.action))
        for name, latents in {"as played": free, **versions}.items()
    }
assert behaviour["as played"] > 0.8 and behaviour["sand"] > 0.8
assert max(behaviour[name] for name in ("stone", "water", "tree")) < 0.25
pd.Series(behaviour, name="scrolled (1) or stayed (0)").round(2).to_frame()

# %% [markdown]
# One cell decides: with stone, water or a tree there, the picture stays; with sand it scrolls as it did.
#
# ## Is it known?
#
# A probe on the last frame's stream, in the player's own cell: is the cell ahead walkable? On recorded play, moves that
# succeeded and moves that did not. Against what the noisy input, its neighbours and shuffled weights give: after which
# layer does the probe leave them behind?

# %%
moves = recorded[(crafter.implied(recorded)[:, -1].abs().sum(-1) > 0).nonzero()[:, 0]]
walkable = torch.isin(facing(moves), torch.tensor([crafter.SEMANTIC.index(name) for name in ("grass", "sand", "path")]))
labels = walkable.long()[:, None, None, None].expand(len(moves), 8, 7, 9).contiguous()
own_cell = torch.zeros(len(moves), 8, 7, 9, dtype=torch.bool)
own_cell[:, last, 3, 4] = True
probe = vd.probes.fit(
    vd.NoisedClips(pipe, moves, noise_levels=(level,)),
    labels,
    names=["blocked", "walkable"],
    what="cell ahead",
    mask=own_cell,
)
read = probe.values()[:, 0]
beaten = [probe.values(kind)[:, 0].max() for kind in ("noisy input, neighbours", "untrained", "shuffled")]
assert read[1:].max() > 0.85 > max(beaten) + 0.1
probe

# %% [markdown]
# ## Where is it, and when?
#
# Denoising patching: the stream of the clip with a free way goes into the one with stone, region by region. Before
# block 0 all of it is in that one cell; one block later it has gone to the noisy frame, to *all* of its cells: the dark
# cell jumps from one column to another.

# %%
around = [(3, 3), (3, 5), (2, 4), (4, 4)]
cells = {(row, col) for row in range(7) for col in range(9)}
regions = {
    "cells ahead, frame 6": [grid.index(6, *cell) for cell in around],
    "player, frame 6": [grid.index(6, 3, 4)],
    "rest of frame 6": [grid.index(6, *cell) for cell in cells - set(around) - {(3, 4)}],
    "earlier frames": list(range(grid.index(6, 0, 0))),
    "last frame": [grid.index(7, *cell) for cell in cells],
}
runs = {"model": pipe, "clean": free, "corrupted": versions["stone"], "noise_levels": level, "noise": noise,
        "cond": clips.action, "sweep_options": {"progress": False}}  # fmt: skip
stream = vd.activation_patch(**runs, site="resid_pre", over=("layer", "region"), regions=regions)
where = pd.DataFrame(stream.values.numpy(), columns=list(regions))
assert where.loc[0, "cells ahead, frame 6"] > 0.9 and where.loc[1, "last frame"] > 0.8
assert where.loc[1:, ["player, frame 6", "rest of frame 6", "earlier frames"]].abs().max().max() < 0.1
stream.plot()

# %% [markdown]
# ## Who carries it?
#
# Head by head. 0.2 alone restores the free way, and is needed for it; then 2.0, the head that scrolls. Of 0.2 it is the
# *values* that matter: it looks at the cell ahead in either case, and takes over what stands there. Of 2.0 it is the
# *queries*: where to look is what has changed.

# %%
enough = vd.activation_patch(**runs, site="z", over=("layer", "head"))
needed = vd.activation_patch(**runs, site="z", over=("layer", "head"), direction="noising")
parts = {site: vd.activation_patch(**runs, site=site, over=("layer", "head")).values for site in ("q", "k", "v")}
assert enough.values.argmax() == 2 and enough.values[0, 2] > 0.8 and enough.values[2, 0] > 0.4
assert needed.values[0, 2] < 0.2 and needed.values[2, 0] < 0.3
assert parts["v"][0, 2] > 0.8 > 0.1 > parts["q"][0, 2].abs() and parts["q"][2, 0] > 0.3 > parts["v"][2, 0]
enough.plot()

# %%
pd.DataFrame(
    {
        "alone restores": enough.values[[0, 1, 2], [2, 2, 0]].numpy(),
        "left without it": needed.values[[0, 1, 2], [2, 2, 0]].numpy(),
        **{f"its {site}": values[[0, 1, 2], [2, 2, 0]].numpy() for site, values in parts.items()},
    },
    index=["head 0.2", "head 1.2", "head 2.0"],
).round(2)

# %% [markdown]
# Where does 0.2 look? From every cell of the last frame (the framed one is far from the player), at the cell ahead of
# the player: one bright patch, in the frame before.

# %%
noised = vd.NoisedClips(pipe, clips, noise_levels=(level,))
cache = noised.cache(level, ["rot_q", "rot_k"], slice(0, 16))
query = grid.index(last, 1, 1)  # a cell far from the player
rows = cache["pattern", 0].heads([2]).rows([query])[:, 0, 0]
ahead = [grid.index(6, 3 + r, 4 + c) for r, c in crafter.implied(clips)[:16, -1].tolist()]
mass = rows[torch.arange(16), ahead]
strip = vd.plotting.attention_strip(
    clips.video[0], {"head 0.2": rows[0, : grid.n_tokens].view(grid.shape)}, queries={"head 0.2": (last, 1, 1)},
    title=f"Head 0.2, from a far cell of the last frame (action: {crafter.ACTIONS[int(clips.action[0, -1].argmax())]})",
)  # fmt: skip
print(f"{mass.mean():.2f} of its attention is on the one cell ahead (uniform: {1 / grid.n_tokens:.4f})")
assert mass.mean() > 0.3
strip

# %% [markdown]
# ## From 0.2 to 2.0
#
# Path patching: 0.2 tells the queries of 2.0 directly, and through layer 1. In the row of 0.2, see which columns are
# not empty.

# %%
paths = vd.path_patch(**runs, senders=["0.2", "1.2", "mlp.0", "mlp.1"],
                      receivers=["1.2.q", "1.2.v", "mlp.1", "2.0.q", "2.0.k", "2.0.v", "mlp.3", "final"])  # fmt: skip
route = pd.DataFrame(paths.values.numpy(), index=paths.senders, columns=paths.receivers)
assert route.loc["0.2", "2.0.q"] > 0.1 and abs(route.loc["0.2", "2.0.v"]) < 0.05
paths.plot()

# %% [markdown]
# ## Is that all?
#
# 0.2 alone brings most of the way back, and next to nothing of it is left without.

# %%
print(f"0.2 alone: {enough.values[0, 2]:.2f} of the way to scrolling; without it {needed.values[0, 2]:.2f} is left")

# %% [markdown]
# **The circuit that survives.** Head 0.2 looks, from every cell of the new frame, at the cell that the action leads to
# and copies what stands there. That reaches the queries of the scroll head 2.0, partly by way of layer 1, and turns
# them from the cell one step away to the same place. The action says *which* cell matters, the cell's content
# *whether* to go: the decision is made everywhere at once, not in the player's cell.
