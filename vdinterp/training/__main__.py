"""`python -m vdinterp.training NAME --out DIR`: training without the rest of the command line."""

from __future__ import annotations

import argparse

from vdinterp.training import RECIPES, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vdinterp.training")
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--out", required=True, help="directory of the run; a stopped run continues")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--no-resume", action="store_true", help="start over")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    train(options.name, steps=options.steps, out=options.out, seed=options.seed, resume=not options.no_resume)


if __name__ == "__main__":
    main()
