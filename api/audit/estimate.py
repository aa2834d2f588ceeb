"""The rate of unsupported answers, estimated from the verdicts of a critic that is itself sometimes wrong. Pure.

Called by `api.audit.figures`. The critic's own errors are known from a golden set only, so they are uncertain too.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

Z_95: Final = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""
LEAST_KAPPA: Final = 0.6
"""Agreement with the golden set below which a critic's verdicts are not counted (κ; «substantial» begins here)."""
LEAST_GOLDEN_ROWS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCounts:
    """A critic's verdicts on answers of which it is known whether they are supported. Positive is unsupported."""

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int

    @property
    def rows(self) -> int:
        return self.positives + self.negatives

    @property
    def tpr(self) -> float:
        """Share of the unsupported answers that the critic flags."""
        return self.true_positives / self.positives if self.positives else 0.0

    @property
    def tnr(self) -> float:
        """Share of the supported answers that the critic lets pass."""
        return self.true_negatives / self.negatives if self.negatives else 0.0

    @property
    def kappa(self) -> float:
        """Cohen's κ of critic and labels: 1 for full agreement, 0 for that of chance. 0 where a label or a verdict is
        always the same, since nothing can be told then.
        """
        if not self.rows:
            return 0.0
        agreed = (self.true_positives + self.true_negatives) / self.rows
        flagged = self.true_positives + self.negatives - self.true_negatives
        both_flag = flagged * self.positives
        both_pass = (self.rows - flagged) * self.negatives
        by_chance = (both_flag + both_pass) / self.rows**2
        return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0

    @property
    def is_fit(self) -> bool:
        """True when there were rows enough, and the critic agreed with them well enough, for a rate."""
        return self.rows >= LEAST_GOLDEN_ROWS and self.kappa >= LEAST_KAPPA


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCounts:
    """Sums over audited jobs. A job's weight is 1 / (the share of its like that is sampled), so that a tenant with a
    larger share does not count for more than its jobs: `weights`, `squares` and `flagged` are the sums of weights, of
    their squares, and of the weights of flagged jobs.
    """

    jobs: int = 0
    weights: float = 0.0
    squares: float = 0.0
    flagged: float = 0.0

    def __add__(self, other: "AuditedCounts") -> "AuditedCounts":
        return AuditedCounts(
            jobs=self.jobs + other.jobs,
            weights=self.weights + other.weights,
            squares=self.squares + other.squares,
            flagged=self.flagged + other.flagged,
        )

    @property
    def flagged_share(self) -> float:
        return min(max(self.flagged / self.weights, 0.0), 1.0) if self.weights else 0.0

    @property
    def effective_jobs(self) -> float:
        """How many jobs of equal weight are as informative (Kish)."""
        return self.weights**2 / self.squares if self.squares else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate with its 95 % interval."""

    rate: float
    low: float
    high: float


def hallucination_rate(audited: AuditedCounts, golden: GoldenCounts) -> Rate | None:
    """The corrected rate; None while nothing is audited or the critic is not fit to be counted."""
    if not audited.jobs or not golden.is_fit:
        return None
    return corrected_rate(audited.flagged_share, audited.effective_jobs, golden)


def corrected_rate(flagged_share: float, jobs: float, golden: GoldenCounts) -> Rate:
    """The true rate behind a flagged share (Rogan and Gladen 1978), with Wilson's interval of it.

    The interval holds each rate p whose expected share `p TPR + (1 - p) FPR` is within z standard errors of what was
    seen. The variance is the score test's of the flagged share, as in Wilson's interval, plus those of TPR and FPR,
    times p squared and (1 - p) squared: with a critic that never errs it is Wilson's interval itself. TPR and FPR have
    one row added to each side (Lang and Reiczigel 2014), since 100 of 100 is no proof of 1. Where they can not be told
    apart every rate is possible.
    """
    tpr = (golden.true_positives + 1) / (golden.positives + 2)
    fpr = (golden.negatives - golden.true_negatives + 1) / (golden.negatives + 2)
    z2, gap, excess = Z_95**2, tpr - fpr, flagged_share - fpr
    tpr_variance = tpr * (1 - tpr) / (golden.positives + 2)
    fpr_variance = fpr * (1 - fpr) / (golden.negatives + 2)
    # (excess - p gap)^2 <= z^2 variance(p) is a quadratic inequality: a p^2 + b p + c <= 0.
    a = gap**2 * (1 + z2 / jobs) - z2 * (tpr_variance + fpr_variance)
    b = -2 * gap * excess - z2 * (gap * (1 - 2 * fpr) / jobs - 2 * fpr_variance)
    c = excess**2 - z2 * (fpr * (1 - fpr) / jobs + fpr_variance)
    if a <= 0 or gap <= 0:
        return Rate(rate=_clipped(flagged_share), low=0.0, high=1.0)
    spread = sqrt(max(b * b - 4 * a * c, 0.0))
    low, high = _clipped((-b - spread) / (2 * a)), _clipped((-b + spread) / (2 * a))
    youden = golden.tpr + golden.tnr - 1
    point = (flagged_share + golden.tnr - 1) / youden if youden > 0 else flagged_share
    return Rate(rate=min(max(point, low), high), low=low, high=high)


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)
