"""Entries that several sources' labels share."""

from __future__ import annotations

HATE = "S8 | S10 S12 S1 S11 S2"
TERROR = "S3 S1 | S4 S8 S11 S17 S19"
PROPERTY_CRIME = "S3 | S1 S4 S9 S16 S11"
MISINFORMATION = "S19 | S16 S15 S8 S10 S21"
DRUGS = "S5 | S3 S21 S16"
SEXUAL = "S2 | S7 S3 S12 S10"
