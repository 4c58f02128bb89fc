"""The stimuli of a search as a reader sees them: what a clip and its control clips are called, and how they look."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from vdinterp import plotting

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vdinterp.analysis.induction.task import Task

# What is different in a control clip, where the clip is A B .. A B? and B? is the noisy last frame.
CONTROL_CLIPS = {
    "none": "nothing comes back",
    "no content": "earlier B replaced",
    "no match": "earlier A replaced",
    "no cue": "last A replaced",
    "reversed": "B A instead of A B",
    "shuffled": "shuffled order",
}
INTRODUCED = (
    "The clips: a frame A is followed by a frame B; later A comes again, and the last frame, B once more, is given as "
    "noise with little of B in it. A model that looks up what followed A can say what it is. A control clip has the "
    "same last frame and noise and lacks one thing: the gain over it is what that thing was good for."
)


# What the code calls things, as a report says it.
WORDS = {
    "successor": "earlier B",
    "best foil": "best distractor",
    "foils": "distractors",
    "foil": "distractor",
    "its cue": "the last A",
    "cue": "last A",
    "predecessor": "earlier A",
    "twins": "control clips",
    "twin": "control clip",
}


def in_plain_words(text: str) -> str:
    """A text with the words of `WORDS` replaced."""
    pattern = r"\b(" + "|".join(WORDS) + r")\b"
    return re.sub(pattern, lambda match: WORDS[match.group()], text)


def stimuli(task: Task, index: int = 0) -> dict[str, torch.Tensor]:
    """One clip and its control clips by name, `[frame channel height width]`, and its `lag`."""
    frames = {"clip": task.repeats.video, **task.repeats.twins}
    shown = {name: task.pictures(clips[index]).clone() for name, clips in frames.items()}
    return {**shown, "lag": task.repeats.lag[index].clone()}


def strip(found: Mapping[str, torch.Tensor]) -> dict[str, go.Figure]:
    """A clip over its control clips as a film strip, its A and B marked; empty where none was kept."""
    if "clip" not in found:
        return {}
    last = len(found["clip"]) - 1
    at = last - int(found["lag"])
    marks = {at - 1: "A", at: "B", last - 1: "A", last: "B?"}
    labels = [f"{frame} {marks[frame]}" if frame in marks else str(frame) for frame in range(last + 1)]
    rows = {"the clip": found["clip"].numpy()}
    rows |= {CONTROL_CLIPS[name]: found[name].numpy() for name in CONTROL_CLIPS if name in found}
    clip = found["clip"]
    boxed = {"the clip": list(marks)} | {
        CONTROL_CLIPS[name]: (found[name] != clip).flatten(1).any(1).nonzero()[:, 0].tolist()
        for name in CONTROL_CLIPS
        if name in found
    }
    title = "A clip that comes back, and its control clips"
    figure = plotting.filmstrip(rows, title=title, n_context=last, frame_labels=labels, boxed=boxed)
    what = (
        "The last frame is given as noise and has to be foretold; all rows have the same. Boxes: A and B in the first "
        "row, what was changed in the others"
    )
    return {f"{title}. {what}": figure}
