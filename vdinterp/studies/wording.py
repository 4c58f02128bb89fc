"""Sentences made from the numbers of a StudyResult."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdinterp.words.wording import listing, number, plural, with_interval

if TYPE_CHECKING:
    from vdinterp.studies.result import StudyResult


def scored(row: Any) -> str:
    """A row's value with its interval."""
    return with_interval(row["value"], row["low"], row["high"])


def only(table: Any) -> Any:
    """The single row of a table."""
    assert len(table) == 1, f"{len(table)} rows where one was expected"
    return table.iloc[0]


def intact(result: StudyResult, protocol: str = "sample") -> Any:
    """The intact model's x0 error against the truth."""
    return only(result.pick(ablation="intact", protocol=protocol))


def copy(result: StudyResult) -> Any:
    """The x0 error of a still picture."""
    return only(result.pick(variant="copy last frame"))


def rises(result: StudyResult, **where: Any) -> Any:
    """Rise in x0 error of some conditions, largest first, with `error` (against the truth) and `clear`: whether the
    interval of the rise lies above 0 (never so with a single clip, which has no interval)."""
    rise = result.pick(reference="rise", **where).copy()
    rise["error"] = result.pick(**where)["value"].to_numpy()
    rise["clear"] = rise["low"] > 0
    return rise.sort_values("value", ascending=False, kind="stable")


def name(row: Any) -> str:
    mode = f" ({row['mode']})" if row["mode"] != "-" and row["site"] in ("head", "layer") else ""
    return f"`{row['variant']}`{mode}"


def ranking(result: StudyResult, protocol: str = "sample", **where: Any) -> list[str]:
    """What hurts most, what hurts less, what does nothing that can be measured; against intact and a still picture."""
    table = rises(result, protocol=protocol, **where)
    if not len(table):
        return []
    base, still = intact(result, protocol), copy(result)
    hurts, rest = table[table["clear"]], table[~table["clear"]]
    sentences = []
    if len(hurts):
        worst = hurts.iloc[0]
        beside = "worse than" if worst["error"] > still["value"] else "still better than"
        sentences.append(
            f"The largest rise comes from {name(worst)}: the x0 error goes from {number(base['value'])} to "
            f"{number(worst['error'])}, {times(worst['error'], base['value'])}, {beside} a still picture "
            f"({number(still['value'])})."
        )
        if len(hurts) > 1:
            others = listing([f"{name(row)} {number(row['error'])}" for _, row in hurts.iloc[1:].iterrows()][:8])
            sentences.append(f"Then follow, by error: {others}.")
    unknown = rest[rest["high"].isna()]
    harmless = rest[rest["high"] >= 0]
    helps = rest[rest["high"] < 0]
    if len(unknown):
        which = listing([f"{name(row)} {number(row['error'])}" for _, row in unknown.iterrows()][:8])
        sentences.append(f"One clip gives no intervals, so nothing is certain; by error: {which}.")
    if len(harmless):
        which = listing([name(row) for _, row in harmless.iterrows()][:8])
        sentences.append(
            f"The interval of the rise includes 0 for {which}: no effect could be measured on these clips."
        )
    if len(helps):
        which = listing([f"{name(row)} ({number(row['value'])})" for _, row in helps.iterrows()][:8])
        sentences.append(f"The error is lower than the intact model's with {which}.")
    return sentences


def times(error: float, base: float) -> str:
    if base <= 0:
        return "from nothing"
    ratio = error / base
    return f"{number(ratio)} times the intact model's"


def components(result: StudyResult, ablation: str, site: str, mode: str) -> str:
    """Which single layers or heads matter most, in one sentence."""
    table = rises(result, protocol="denoise", ablation=ablation, site=site, mode=mode)
    if not len(table):
        return ""
    clear = table[table["clear"]]
    base = number(intact(result, "denoise")["value"])
    what = f"Of {plural(len(table), f'single {site}')}, each replaced by {_meant(mode)},"
    if not len(clear):
        return f"{what} none raises the one-pass error of {base} measurably by itself."
    top = listing([f"`{row['variant']}` by {scored(row)}" for _, row in clear.head(3).iterrows()])
    share = clear["value"].head(3).sum() / table["value"].clip(lower=0).sum()
    tail = f"; the first three make {share:.0%} of the sum of all rises" if len(table) > 3 and len(clear) > 2 else ""
    verb = "raises" if len(clear) == 1 else "raise"
    return f"{what} {len(clear)} {verb} the one-pass error of {base} measurably, most of all {top}{tail}."


def _meant(mode: str) -> str:
    meanings = {
        "zero": "zero",
        "mean": "its mean",
        "resample": "another clip's",
        "frozen": "its value at the noisiest step",
    }
    return meanings[mode]
