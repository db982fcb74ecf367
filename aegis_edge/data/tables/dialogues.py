"""Comments and dialogues: offensive posts, and responses judged in their context."""

from __future__ import annotations

from aegis_edge.data.tables.shared import HATE

COMMENTS = {  # offensive comments of several hate and toxicity sets
    "hate": HATE,
    "offensive": " | S8 S10 S12 S1 S2 S11",
    "derogation": HATE,
    "animosity": HATE,
    "dehumanizinglanguage": HATE,
    "threateninglanguage": "S11 | S8 S1 S10 S12 S3",
    "1. threats, plans to harm and incitement": "S11 | S8 S1 S10 S12 S2 S3",
    "2. derogation": HATE,
    "3. animosity": HATE,
    "4. prejudiced discussions": HATE,
    "toxicity": " | S8 S10 S12 S1 S2 S11",
}
DIASAFETY = {
    "Offending User": "S10 | S8 S12 S11 S2",
    "Risk Ignorance": " | S6 S1 S21 S5",
    "Unauthorized Expertise": "S21 | S5 S6 S16",
    "Toxicity Agreement": " | S8 S10 S12 S1 S2 S11",
    "Biased Opinion": "S8 | S10 S19 S12",
}
SAFETEXT = {"physical safety": " | S1 S6 S21 S3 S5 S4"}
MEDICAL = {"medical ethics": " | S21 S16 S9 S3 S5 S10 S15 S6 S1"}
