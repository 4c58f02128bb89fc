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
# # What is each part for? Five ablations
#
# Leave a part out and see what the video loses: the transformer itself, all denoising steps but one, AdaLN, attention,
# the MLPs. Every condition continues the same clips from the same context and the same noise, so whatever differs is
# the part that was taken away.
#
# The model here is `tiny-induction`, which takes seconds. For the world model, and for the full report, run
# `vdinterp study ablations --model tiny-crafter --out out/ablations`.

# %%
import vdinterp as vd

pipe = vd.load("tiny-induction")
result = vd.studies.run("ablations", pipe, n_clips=12, steps=8, seed=3)
result.summary()

# %% [markdown]
# ## The table
#
# One row a number. `x0 error` is the squared error of the latents over their variance: 0 is perfect, 1 is guessing the
# mean frame. `reference="rise"` is the error minus the intact model's on the same clips, with a 95 % bootstrap interval
# over clips.

# %%
table = result.to_frame()
assert set(table["ablation"]) == {"intact", "no transformer", "one step", "no AdaLN", "no attention", "no MLP"}
assert (result.pick(reference="intact", ablation="intact")["value"] == 0).all(), "the intact model agrees with itself"
rises = result.pick("x0 error", "rise", protocol="sample").sort_values("value", ascending=False)
rises[["ablation", "variant", "value", "low", "high", "n_clips"]].head(10)

# %% [markdown]
# ## All conditions at a glance
#
# A bar is a condition; the lines are the intact model and a still picture of the last frame. What rises far above the
# intact line is needed; what passes the still picture predicts worse than no model at all.

# %%
intact = result.pick(ablation="intact", protocol="sample")["value"].item()
cut = result.pick(variant="context to target cut")["value"].item()
assert intact < 0.6, "the intact model predicts what the context determines"
assert cut > 2 * intact, "without the context it cannot"
result.overview()

# %% [markdown]
# ## One chapter at a time
#
# `result.chapter(name)` says in words what the numbers say:

# %%
result.chapter("no attention")

# %% [markdown]
# `result.figures(name)` are its figures: the error of every variant, frame by frame, the clips themselves (where does
# the digit stop being right?), and which single heads and layers are needed.

# %%
result.figures("no attention")

# %% [markdown]
# ## How many steps does it take?
#
# From the left, few steps, to the right, many: where a curve is flat, further steps do not help.

# %%
result.figures("one step")

# %% [markdown]
# ## A condition of your own
#
# A study is a list of conditions; each is data. This one asks whether the model needs to see *where* in the frame
# something was: attention limited to the same position, in one layer at a time.

# %%
from vdinterp.studies import Condition, StudyResult, build, study


@study("same position, layer by layer")
def same_position(bench):
    """Attention of one layer sees its own place in the frame only."""
    conditions = [Condition(ablation="intact", variant="intact")]
    conditions += [
        Condition(
            ablation="same position",
            variant=f"layer {layer}",
            interventions=[vd.MaskAttention(allow="same_position", layers=[layer])],
        )
        for layer in range(bench.pipe.model.cfg.n_layers)
    ]
    return build(StudyResult, bench, bench.measure(conditions), "Does attention need to look elsewhere in the frame?")


mine = vd.studies.run("same position, layer by layer", pipe, n_clips=12, steps=8, seed=3)
mine.plot()[0]

# %% [markdown]
# The layer whose bar rises most is the one that has to look elsewhere.

# %%
assert mine.pick(ablation="intact")["value"].item() == intact, "the same clips, the same noise"
