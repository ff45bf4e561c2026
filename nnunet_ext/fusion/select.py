"""Which model owns which organ, chosen from cross-validation, and what that is worth on unseen folds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from nnunet_ext.evaluation.statistics import wilcoxon_p

MIN_GAIN = 0.005
"""Our choice: an owner changes only for a paired gain above half a Dice point, or for p < 0.05."""
ALPHA = 0.05


@dataclass(frozen=True)
class CaseScore:
    """One organ of one validation case, predicted by a model that did not train on it.

    Args:
        model: Name of the model.
        fold: The fold in which the case was validated.
        case: Case identifier, the same for all models.
        organ: Organ name.
        dsc: Dice, or NaN where nothing could be judged (not contoured, both empty).
    """

    model: str
    fold: int
    case: str
    organ: str
    dsc: float


@dataclass(frozen=True)
class OwnerChoice:
    """The owner of one organ and why.

    Args:
        owner: Name of the model.
        means: Model to its mean Dice on this organ, only models with a judged case.
        gain: Paired mean gain of the owner over the base model; 0 where the base model was kept.
        p_value: Wilcoxon p of that gain; NaN where the base model was kept.
        reason: One sentence.
    """

    owner: str
    means: dict[str, float]
    gain: float
    p_value: float
    reason: str


@dataclass(frozen=True)
class NestedEstimate:
    """What choosing owners is worth on cases that had no part in the choice.

    Args:
        means: Organ to the mean Dice over all folds; NaN where the organ was never judged.
        overall: Mean over the organs that were judged, each weighing the same; NaN with fewer than two folds.
        owners: Fold to the owners (organ to model) that were chosen without it.
    """

    means: dict[str, float]
    overall: float
    owners: dict[int, dict[str, str]]


def choose_owners(
    scores: Sequence[CaseScore], organs: Sequence[str], base: Sequence[str] = (), min_gain: float = MIN_GAIN
) -> dict[str, OwnerChoice]:
    """The owner of every organ.

    The base model of an organ is the best model over all organs among those that were judged on it: models
    that know more of the organs come first (means over different organs cannot be compared), then the higher
    mean over the organs, then the order of ``base``. Another model becomes owner only if its paired mean gain
    over the base model exceeds ``min_gain``, or is positive with Wilcoxon p < 0.05; of several, the largest
    gain wins.

    The choice is optimistic about the cases that it was made on: print it beside ``nested_estimate``.

    Source: the combined U-Net of StructSeg 2019 chooses by cross-validation; threshold and test are ours.

    Args:
        scores: Cross-validation scores of all models.
        organs: Organs that need an owner.
        base: Models in the order of preference where the scores say nothing.
        min_gain: Paired mean gain in Dice that is enough without a significant test.

    Raises:
        ValueError: neither a score nor a model in ``base`` is given.
    """
    judged = _judged(scores)
    known = _models(scores, base)
    if not known:
        raise ValueError("no model to choose from: scores and base are both empty.")
    ranking = _ranking(judged, known, organs)
    return {organ: _choose(organ, judged, ranking, _knowing(scores, organ), min_gain) for organ in organs}


def nested_estimate(
    scores: Sequence[CaseScore], organs: Sequence[str], base: Sequence[str] = (), min_gain: float = MIN_GAIN
) -> NestedEstimate:
    """Dice of the composed model where each fold is scored with owners chosen on the other folds only.

    Args:
        scores: Cross-validation scores of all models.
        organs: Organs that need an owner.
        base: Models in the order of preference where the scores say nothing.
        min_gain: As in choose_owners.
    """
    folds = sorted({score.fold for score in scores})
    owners: dict[int, dict[str, str]] = {}
    values: dict[str, list[float]] = {organ: [] for organ in organs}
    for fold in folds if len(folds) > 1 else []:
        others = [score for score in scores if score.fold != fold]
        models = _models(scores, base)
        owners[fold] = {o: c.owner for o, c in choose_owners(others, organs, models, min_gain).items()}
        for score in scores:
            is_owner = score.fold == fold and owners[fold].get(score.organ) == score.model
            if is_owner and math.isfinite(score.dsc):
                values[score.organ].append(score.dsc)
    means = {organ: _mean(found) for organ, found in values.items()}
    return NestedEstimate(means, _mean([mean for mean in means.values() if math.isfinite(mean)]), owners)


def selection_table(choices: Mapping[str, OwnerChoice], nested: NestedEstimate) -> str:
    """Organs × models with the owner marked, the honest nested column, and the reason of every choice."""
    models = list(dict.fromkeys(model for choice in choices.values() for model in choice.means))
    width = max([len("mean of organs"), *map(len, choices)]) + 2
    columns = [max(len(model), 8) + 2 for model in models]
    names = "".join(f"{model:>{size}}" for model, size in zip(models, columns, strict=True))
    header = f"{'organ':<{width}}{names}{'chosen':>10}{'nested':>10}  reason"
    lines = [header, "-" * len(header)]
    for organ, choice in choices.items():
        cells = "".join(
            f"{_number(choice.means.get(model)) + ('*' if model == choice.owner else ' '):>{size}}"
            for model, size in zip(models, columns, strict=True)
        )
        chosen, honest = choice.means.get(choice.owner), nested.means.get(organ)
        numbers = f"{_number(chosen):>10}{_number(honest):>10}"
        lines.append(f"{organ:<{width}}{cells}{numbers}  {choice.owner}: {choice.reason}")
    lines.append(_overall_line(choices, nested, models, columns, width))
    lines += [
        "",
        "Mean Dice over cross-validation cases; * owner.",
        "'chosen' is optimistic: owner and score come from the same cases.",
        "'nested' is what a new patient would see: each fold scored with owners chosen on the other folds.",
    ]
    return "\n".join(lines) + "\n"


def _overall_line(
    choices: Mapping[str, OwnerChoice],
    nested: NestedEstimate,
    models: Sequence[str],
    columns: Sequence[int],
    width: int,
) -> str:
    """Means over the organs; a model's mean only where it was judged on all that any model was judged on."""
    organs = [choice for choice in choices.values() if choice.means]
    cells = ""
    for model, size in zip(models, columns, strict=True):
        complete = all(model in choice.means for choice in organs)
        mean = fmean(choice.means[model] for choice in organs) if complete else None
        cells += f"{_number(mean) + ' ':>{size}}"
    chosen = _mean([choice.means[choice.owner] for choice in organs])
    return f"{'mean of organs':<{width}}{cells}{_number(chosen):>10}{_number(nested.overall):>10}"


Judged = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Organ to model to case to Dice, finite values only."""


def _choose(organ: str, judged: Judged, ranking: Sequence[str], knowing: Sequence[str], min_gain: float) -> OwnerChoice:
    found = judged.get(organ, {})
    means = {model: _mean(list(found[model].values())) for model in ranking if found.get(model)}
    nan = float("nan")
    if not means:
        owner = next((model for model in ranking if model in knowing), ranking[0])
        return OwnerChoice(owner, means, 0.0, nan, "never judged; the base model by default")
    base, *others = means
    if not others:
        return OwnerChoice(base, means, 0.0, nan, "the only model that was judged on it")
    best: tuple[float, float, str] | None = None
    for model in others:
        gains = [found[model][case] - value for case, value in found[base].items() if case in found[model]]
        gain, p = _mean(gains), wilcoxon_p(gains)
        better = gain > min_gain or (gain > 0 and p < ALPHA)
        if better and (best is None or gain > best[0]):
            best = (gain, p, model)
    if best is None:
        return OwnerChoice(base, means, 0.0, nan, "base model; no other is better by enough")
    gain, p, owner = best
    return OwnerChoice(owner, means, gain, p, f"{gain:+.4f} over {base} on the same cases (p = {p:.3f})")


def _ranking(judged: Judged, models: Sequence[str], organs: Sequence[str]) -> list[str]:
    def worth(model: str) -> tuple[int, float]:
        means = [_mean(list(judged[o][model].values())) for o in organs if judged.get(o, {}).get(model)]
        return len(means), _mean(means) if means else 0.0

    return sorted(models, key=worth, reverse=True)  # stable: equal ones keep the given order


def _judged(scores: Sequence[CaseScore]) -> Judged:
    judged: dict[str, dict[str, dict[str, float]]] = {}
    for score in scores:
        if math.isfinite(score.dsc):
            judged.setdefault(score.organ, {}).setdefault(score.model, {})[score.case] = score.dsc
    return judged


def _models(scores: Sequence[CaseScore], base: Sequence[str]) -> list[str]:
    """All models: the given order, then the others by name; the order of the scores has no influence."""
    return list(dict.fromkeys([*base, *sorted({score.model for score in scores})]))


def _knowing(scores: Sequence[CaseScore], organ: str) -> list[str]:
    return sorted({score.model for score in scores if score.organ == organ})


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
