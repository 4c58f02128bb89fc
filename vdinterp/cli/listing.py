"""What there is: bundled models and hook points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vdinterp.cli.group import echo_table, main

if TYPE_CHECKING:
    import pandas as pd


@main.command()
def models() -> None:
    """List the bundled models and the families that convert."""
    from vdinterp.pipeline import list_families

    echo_table(models_table())
    click.echo(f"\nConverters for published checkpoints: {', '.join(list_families())}")


@main.command()
@click.argument("model")
def hooks(model: str) -> None:
    """List the hook points of MODEL: name, shape, meaning."""
    import vdinterp as vd

    echo_table(vd.load(model).model.describe_hooks())


def models_table() -> pd.DataFrame:
    """The bundled models, one row each: size, what a clip is, and the training steps that can be loaded."""
    import pandas as pd

    from vdinterp.pipeline import list_checkpoints, list_models, load

    rows = []
    for name in list_models():
        pipe = load(name)
        cfg = pipe.model.cfg
        frame = "x".join(map(str, (cfg.in_channels, cfg.height, cfg.width)))
        steps = list_checkpoints(name)
        rows.append(
            {
                "model": name,
                "parameters": f"{sum(weight.numel() for weight in pipe.model.parameters()) / 1e6:.2f} M",
                "layers x heads": f"{cfg.n_layers} x {cfg.n_heads}",
                "block": cfg.residual,
                "latents": f"{cfg.n_frames} frames of {frame}",
                "actions": cfg.d_action or "none",
                "checkpoints": f"{len(steps)}, steps {steps[0]} to {steps[-1]}" if steps else "none",
            }
        )
    return pd.DataFrame(rows)
