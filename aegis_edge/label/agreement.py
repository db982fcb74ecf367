"""Agreement of a jury beyond chance: 1 where it always agrees, 0 where it agrees as often as chance has it.

Both take, for each row, how many votes each label got. Judges that abstained are in no count, and a row with
fewer than two votes says nothing about agreement: it is left out. None where agreement is undefined: no row
with two votes, or all votes for one label (chance alone would agree always).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Counts = Mapping[str, int]


def fleiss_kappa(rows: Iterable[Counts]) -> float | None:
    """Fleiss' kappa, for any number of votes a row.

        kappa = 1 - sum_i (n_i^2 - sum_j n_ij^2) / n_i  /  (N (m - 1) (1 - sum_j p_j^2))

    n_ij votes for label j on row i, n_i = sum_j n_ij, N rows, m = sum_i n_i / N, and p_j = sum_i n_ij /
    sum_i n_i.

    With n_i = m everywhere this is (P - Pe) / (1 - Pe) of J. L. Fleiss, "Measuring nominal scale agreement
    among many raters", Psychological Bulletin 76 (1971) 378-382. With two labels and unequal n_i it is
    1 - sum_i n_i p_i q_i / (N (m - 1) p q) of J. L. Fleiss and J. Cuzick, "The reliability of dichotomous
    judgments: unequal numbers of judges per subject", Applied Psychological Measurement 3 (1979) 537-542.
    """
    used = _pairable(rows)
    total = sum(sum(row) for row in used)
    if not used or (chance := 1 - _sum_squares(_columns(used)) / total**2) == 0:
        return None
    observed = sum((sum(row) ** 2 - _sum_squares(row)) / sum(row) for row in used)
    return 1 - observed / ((total - len(used)) * chance)


def krippendorff_alpha(rows: Iterable[Counts]) -> float | None:
    """Krippendorff's alpha for nominal labels with missing votes.

        alpha = 1 - (n - 1) (n - sum_c o_cc) / (n^2 - sum_c n_c^2)

    o_cc = sum_i n_ic (n_ic - 1) / (n_i - 1) coincidences of label c with itself, n_c = sum_i n_ic, n = sum_c
    n_c. From K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections B and C.
    """
    used = _pairable(rows)
    columns = _columns(used)
    n = sum(columns)
    if not used or n**2 == _sum_squares(columns):
        return None
    same = sum(count * (count - 1) / (sum(row) - 1) for row in used for count in row)
    return 1 - (n - 1) * (n - same) / (n**2 - _sum_squares(columns))


def _pairable(rows: Iterable[Counts]) -> list[list[int]]:
    """Rows with two votes or more, as lists over the same labels."""
    kept = [row for row in rows if sum(row.values()) > 1]
    labels = sorted({label for row in kept for label in row})
    return [[row.get(label, 0) for label in labels] for row in kept]


def _columns(rows: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _sum_squares(counts: list[int]) -> int:
    return sum(count * count for count in counts)
