"""Training of the bundled models, and the loop anyone can train their own with."""

from vdinterp.training.loop import fit, step_generator

__all__ = ["fit", "step_generator"]
