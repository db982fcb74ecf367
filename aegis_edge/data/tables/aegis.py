"""Aegis 2.0's own categories: which of them may hold beside one that an annotator named."""

from __future__ import annotations

from aegis_edge.taxonomy import HAZARDS

ANY = " ".join(hazard.code for hazard in HAZARDS)

# What annotators of Aegis often see together: a request for a crime is Criminal Planning first, so the
# topical category next to it is not a safe negative.
NEIGHBOURS: dict[str, str] = {
    "S1": "S3 S11 S4 S10",
    "S2": "S12 S7 S10",
    "S3": "S1 S4 S5 S16 S17 S9 S11 S15",
    "S4": "S1 S3 S11",
    "S5": "S3 S21",
    "S6": "S1 S21",
    "S7": "S2 S3",
    "S8": "S10 S12 S1 S11",
    "S9": "S3 S10 S16 S17",
    "S10": "S8 S12 S11 S1 S15",
    "S11": "S1 S10 S3",
    "S12": "S8 S10 S2",
    "S13": ANY,
    "S14": ANY,
    "S15": "S16 S10 S19",
    "S16": "S3 S15 S9 S19 S20",
    "S17": "S3 S9 S16",
    "S18": "S9 S19 S15 S3",
    "S19": "S15 S16 S8 S18",
    "S20": "S16 S3",
    "S21": "S5 S6 S16",
    "S22": ANY,
    "S23": ANY,
}
