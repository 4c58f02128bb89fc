"""Bad input through every door of the library: is it refused in one sentence before anything is computed?

`python -m fuzz` (with `tests` on the path) tries thousands of calls, each with one thing wrong in it, and counts by
door what came of them. `harness` judges a call, `world` has the model and files they work on, `values` what is wrong,
and `doors` the calls.
"""
