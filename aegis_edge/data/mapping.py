"""Source categories to Aegis 2.0: one table a source.

A table maps the source's label to two sets of S-codes:
  certain   the text falls under these; used as positives of category leaves
  possible  it may well fall under these too; never used as negatives
Written "S8 | S10 S11": certain, bar, possible. An unsafe text whose label is in no table could be anything:
then every category is possible. The vague categories (Needs Caution, Other, Illegal Activity,
Immoral/Unethical) can cover nearly every unsafe text, so they are always at least possible.

The codes: S1 Violence, S2 Sexual, S3 Criminal Planning/Confessions, S4 Guns and Illegal Weapons, S5
Controlled/Regulated Substances, S6 Suicide and Self Harm, S7 Sexual (minor), S8 Hate/Identity Hate, S9
PII/Privacy, S10 Harassment, S11 Threat, S12 Profanity, S13 Needs Caution, S14 Other, S15 Manipulation, S16
Fraud/Deception, S17 Malware, S18 High Risk Gov Decision Making, S19 Political/Misinformation/Conspiracy, S20
Copyright/Trademark/Plagiarism, S21 Unauthorized Advice, S22 Illegal Activity, S23 Immoral/Unethical.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ALL_CODES: tuple[str, ...] = tuple(f"S{n}" for n in range(1, 24))
VAGUE: frozenset[str] = frozenset({"S13", "S14", "S22", "S23"})


@dataclass(frozen=True)
class Categories:
    """S-codes: certain ones hold; possible ones (a superset) may hold, all others do not."""

    certain: frozenset[str] = frozenset()
    possible: frozenset[str] = frozenset()


UNKNOWN = Categories(frozenset(), frozenset(ALL_CODES))

# Names as Aegis files spell them (lower case) -> code.
AEGIS: dict[str, str] = {
    "violence": "S1",
    "sexual": "S2",
    "criminal planning/confessions": "S3",
    "guns and illegal weapons": "S4",
    "guns/illegal weapons": "S4",
    "controlled/regulated substances": "S5",
    "suicide and self harm": "S6",
    "suicide/self-harm": "S6",
    "sexual (minor)": "S7",
    "sexual minor": "S7",
    "hate/identity hate": "S8",
    "pii/privacy": "S9",
    "harassment": "S10",
    "threat": "S11",
    "profanity": "S12",
    "needs caution": "S13",
    "other": "S14",
    "manipulation": "S15",
    "fraud/deception": "S16",
    "malware": "S17",
    "high risk gov decision making": "S18",
    "political/misinformation/conspiracy": "S19",
    "political/misinfo/conspiracy": "S19",
    "copyright/trademark/plagiarism": "S20",
    "unauthorized advice": "S21",
    "illegal activity": "S22",
    "immoral/unethical": "S23",
}
# What annotators of Aegis often see together: a request for a crime is Criminal Planning first, so the
# topical category next to it is not a safe negative.
AEGIS_NEIGHBOURS: dict[str, str] = {
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
    "S13": " ".join(ALL_CODES),
    "S14": " ".join(ALL_CODES),
    "S15": "S16 S10 S19",
    "S16": "S3 S15 S9 S19 S20",
    "S17": "S3 S9 S16",
    "S18": "S9 S19 S15 S3",
    "S19": "S15 S16 S8 S18",
    "S20": "S16 S3",
    "S21": "S5 S6 S16",
    "S22": " ".join(ALL_CODES),
    "S23": " ".join(ALL_CODES),
}

_HATE = "S8 | S10 S12 S1 S11 S2"
_TERROR = "S3 S1 | S4 S8 S11 S17 S19"
_PROPERTY_CRIME = "S3 | S1 S4 S9 S16 S11"
_MISINFORMATION = "S19 | S16 S15 S8 S10 S21"
_DECEPTION = "S16 | S3 S15 S9 S17 S20"
_DRUGS = "S5 | S3 S21 S16"
_SEXUAL = "S2 | S7 S3 S12 S10"

FORBIDDEN_QUESTIONS = {
    "Political Lobbying": "S19 | S15 S16 S18",
    "Gov Decision": "S18 | S3 S9 S15 S16 S19",
    "Legal Opinion": "S21 | S3",
    "Financial Advice": "S21 | S16",
    "Health Consultation": "S21 | S5 S6",
    "Economic Harm": "S16 | S3 S15 S21",
    "Pornography": _SEXUAL,
    "Fraud": "S16 S3 | S9 S15 S17 S20",
    "Illegal Activity": "S3 | S1 S4 S5 S7 S9 S16 S17 S2 S11",
    "Hate Speech": "S8 | S10 S1 S11 S15 S19",
    "Physical Harm": "S1 | S3 S4 S6 S10 S11 S5",
    "Privacy Violence": "S9 | S3 S10 S16 S17 S15",
    "Malware": "S17 | S3 S9 S16",
}
FIGSTEP = {
    "Hate Speech": "S8 | S10 S1 S11 S19",
    "Fraud": "S16 S3 | S9 S15 S17 S20",
    "Health Consultation": "S21 | S5 S6",
    "Financial Advice": "S21 | S16",
    "Legal Opinion": "S21 | S3",
    "Adult Content": _SEXUAL,
    "Illegal Activity": "S3 | S1 S4 S5 S9 S16 S17 S7 S2 S11",
    "Privacy Violation": "S9 | S3 S10 S16 S17 S15",
    "Physical Harm": "S1 | S3 S4 S6 S10 S11 S5",
    "Malware Generation": "S17 | S3 S9 S16",
}
CATQA = {
    "Economic Harm": "S16 | S3 S15 S20 S21",
    "Tailored Financial Advice": "S21 | S16",
    "Adult Content": _SEXUAL,
    "Political Campaigning": "S19 | S15 S16 S18",
    "Fraud/Deception": "S16 | S3 S9 S15 S20 S19 S17",
    "Physical Harm": "S1 | S3 S4 S6 S10 S11 S21 S5",
    "Malware Viruses": "S17 | S3 S9 S16",
    "Child Abuse": "S3 | S1 S2 S7 S10 S15 S11",
    "Illegal Activity": "S3 | S1 S4 S5 S9 S16 S17 S7 S2",
    "Privacy Violation Activity": "S9 | S3 S10 S16 S17 S15",
    "Hate/Harass/Violence": "S8 | S1 S3 S10 S11 S12 S19",
}
CATQA_FINE = {  # where the subcategory says more than the category
    "Drug:": "S3 S5 | S16",
    "Weapon:": "S3 S4 | S1",
    "Weapon making": "S4 | S1 S3",
    "Self-harm": "S6 | S1 S21",
    "Hazardous material handling": "S1 | S3 S4 S5 S21",
    "Unsafe practices": " | S1 S3 S4 S5 S6 S21",
    "Content Sexual exploitation": "S7 | S2 S3",
    "Online predation": "S7 | S2 S3 S15 S10",
    "Cyberbullying": "S10 | S8 S11 S12 S15",
    "Cybercrime:": "S3 | S17 S9 S16",
    "Intellectual property theft": "S20 | S16 S3",
    "Political misinformation": _MISINFORMATION,
}
SALAD = {
    "O1": _HATE,
    "O2": "S10 | S11 S8 S1 S15 S12",
    "O3": " | S10 S1 S8 S12",
    "O4": _TERROR,
    "O5": "S1 | S3 S11 S4 S10",
    "O6": " | S1 S2 S3 S7 S10 S15",
    "O7": "S10 | S12 S8",
    **{f"O{n}": "S8 | S10 S15 S19" for n in range(8, 14)},
    "O14": "S2 | S7 S12",
    "O15": "S2 | S7 S12 S10 S3",
    "O16": "S2 | S7 S12 S3",
    "O17": "S21 | S3 S16",
    "O18": " | S19 S21 S16",
    "O19": _DRUGS,
    "O20": "S21 | S5 S6",
    "O21": "S19 | S8 S16 S15",
    "O22": "S19 | S21 S16 S15",
    "O23": "S19 | S8 S3 S15 S1",
    "O24": "S16 | S15 S21 S3",
    "O25": " | S16 S21 S3",
    "O26": " | S21 S16 S15 S3",
    "O29": _MISINFORMATION,
    "O30": "S19 | S10 S16 S15 S9",
    "O31": "S9 | S3 S18 S19 S17",
    "O32": "S9 | S3 S16 S17",
    "O33": "S9 | S8 S10 S15",
    "O34": "S9 | S3 S10 S16",
    "O35": "S4 | S1 S3",
    "O36": " | S18 S3 S17 S1 S19",
    "O37": "S17 | S3 S9 S16",
    "O38": "S3 | S17 S9 S16",
    "O39": " | S4 S1 S3 S5",
    "O40": "S10 | S8 S19 S16",
    "O41": "S10 | S16 S19 S9 S15",
    "O42": "S16 | S3 S9 S15",
    "O43": "S16 S3 | S9 S15",
    "O44": "S16 | S20 S15",
    "O45": "S16 | S15 S19",
    "O46": "S16 | S9 S10 S15 S19",
    "O47": _MISINFORMATION,
    "O48": "S16 | S10 S15 S17",
    "O49": " | S16 S21 S5 S19",
    "O50": "S19 | S15 S16",
    "O51": "S19 | S15 S16",
    "O52": "S9 | S3 S18 S10",
    "O53": "S3 | S16",
    "O54": "S5 S3 | S16",
    "O55": "S2 | S3 S7 S1 S10",
    "O56": "S3 S1 | S4 S11",
    "O57": "S3 | S9 S16 S1",
    "O58": "S3 | S21 S16",
    "O59": "S3 | S21 S16",
    "O60": "S3 | S5 S21 S1",
    "O62": "S6 | S1 S21",
    "O63": "S15 | S10 S16",
    "O64": "S20 | S16",
    "O65": "S20 | S16",
    "O66": "S20 | S16 S3",
    "O67": "S16 | S3 S9 S20",
}
TRUSTLLM = {
    "misleading_content": _MISINFORMATION,
    "fake_news": _MISINFORMATION,
    "phishing": "S16 | S3 S9 S17 S15",
    "cyberattack": "S3 | S17 S9 S16",
    "impersonating": "S16 | S9 S3 S10 S15",
    "terrorism": _TERROR,
    "Internal Communications": "S9 | S3 S16 S17 S18 S20",
    "Confidential Operations": "S9 | S3 S16 S17 S18 S20",
    "Sensitive Technological Details": "S9 | S3 S16 S17 S18 S20",
    "Legal Information": "S9 | S3 S16 S17 S18 S21",
    "Financial and Budgetary Information": "S9 | S3 S16 S17 S18",
    "Classified Information": "S9 | S3 S16 S17 S18 S20",
    "Medical Information": "S9 | S3 S16 S10 S21",
    "Personal Life Information": "S9 | S3 S10 S15",
    "Biometric Data": "S9 | S3 S16 S17",
    "Personal Identification Information (PII)": "S9 | S3 S16 S17",
    "Educational Information": "S9 | S3 S16",
    "Financial Information": "S9 | S3 S16",
    "Explicit Sexual Content": _SEXUAL,
    "Rumors": "S19 | S10 S16 S15 S9",
    "False News": _MISINFORMATION,
    "Disinformation": _MISINFORMATION,
    "Malinformation": "S19 | S10 S15 S9 S16",
    "Copyright Infringement": "S20 | S3 S16",
    "Spam Content": "S16 | S10 S15 S17 S19",
    "Insult": "S10 | S8 S12",
    "Obscene": " | S12 S2 S10 S8",
    "Threats and Intimidation": "S11 | S10 S1 S3",
    "Illegal Digital Activities": "S3 | S17 S9 S16 S20",
    "Substance Abuse": _DRUGS,
    "Terrorist Activities": _TERROR,
    "Violence and Physical Harm": "S1 | S3 S6 S4 S11 S10",
    "Financial Crimes": "S3 | S16",
    "Graphic Violence": "S1 | S3 S11",
}
AART = {
    "terrorism": _TERROR,
    "hate crimes": "S8 | S1 S3 S10 S11",
    "crimes motivated": "S8 | S1 S3 S10 S11",
    "sex trafficking": "S3 | S2 S7 S1 S15",
    "child trafficking": "S3 | S2 S7 S1 S15",
    "trafficking": "S3 | S1 S2 S7 S5 S4 S15",
    "smuggling": "S3 | S1 S16",
    "drug": "S5 | S3 S1 S21",
    "alcohol": "S5 | S3 S21",
    "smoking": "S5 | S21 S3",
    "driving under": "S3 | S5 S1",
    "ponzi": "S16 | S3 S15",
    "pyramid": "S16 | S3 S15",
    "fraud": "S16 | S3 S15 S9",
    "identity theft": "S16 | S3 S9",
    "financial crimes": "S3 | S16 S15",
    "embezzlement": "S3 | S16",
    "money laundering": "S3 | S16",
    "tax evasion": "S3 | S16",
    "assassinations": "S1 S3 | S4 S11 S19",
    "murder": "S1 S3 | S4 S11",
    "acts of violence": "S1 | S3 S4 S8 S11 S19",
    "violence": "S1 | S3 S4 S10 S11",
    "bombings": "S3 | S1 S4 S11",
    "assault": "S1 | S3 S10 S2 S11",
    "rape": "S2 | S1 S3 S7 S10",
    "pornography": _SEXUAL,
    "prostitution": "S2 | S3 S7",
    "cyberterrorism": "S3 | S17 S9 S1 S19",
    "kidnapping": "S3 | S1 S4 S11 S7",
    "hijacking": "S3 | S1 S4 S11 S17",
    "robbery": _PROPERTY_CRIME,
    "burglary": _PROPERTY_CRIME,
    "theft": _PROPERTY_CRIME,
    "shoplifting": _PROPERTY_CRIME,
    "arson": "S3 | S1 S11",
    "vandalism": "S3 | S1 S8 S10",
}
SAP = {
    "fraud": "S16 | S3 S9 S15 S17",
    "politics": "S19 | S8 S15 S16 S10",
    "race": "S8 | S10 S1 S15 S19",
    "violence": "S1 | S3 S4 S11 S10",
    "suicide": "S6 | S1 S15 S10",
    "terrorism": _TERROR,
    "pornography_sexual_minors": "S2 | S7 S3",
    "religion": "S8 | S10 S1 S15 S19",
}
JBB = {
    "Harassment/Discrimination": " | S8 S10 S1 S11 S12 S15",
    "Government decision-making": "S18 | S3 S9 S16 S19 S15",
    "Malware/Hacking": "S17 | S3 S9 S16",
    "Sexual/Adult content": _SEXUAL,
    "Privacy": "S9 | S3 S10 S16 S17",
    "Fraud/Deception": "S16 | S3 S15 S9 S20",
    "Disinformation": _MISINFORMATION,
    "Economic harm": " | S16 S15 S21 S3",
    "Physical harm": "S1 | S3 S4 S6 S10 S11 S5 S21",
    "Expert advice": "S21 | S5 S6 S16",
}
MLC = {
    "cae": "S7 | S2 S3",
    "cbr": " | S4 S1 S3 S5",
    "hat": _HATE,
    "nvc": "S3 | S1 S5 S16 S9 S17 S4",
    "scr": "S3 | S2 S7 S1 S16",
    "ssh": "S6 | S1 S21 S5",
    "vcr": "S1 S3 | S4 S11 S8 S10",
}
COMMENTS = {  # offensive comments of several hate and toxicity sets
    "hate": _HATE,
    "offensive": " | S8 S10 S12 S1 S2 S11",
    "derogation": _HATE,
    "animosity": _HATE,
    "dehumanizinglanguage": _HATE,
    "threateninglanguage": "S11 | S8 S1 S10 S12 S3",
    "1. threats, plans to harm and incitement": "S11 | S8 S1 S10 S12 S2 S3",
    "2. derogation": _HATE,
    "3. animosity": _HATE,
    "4. prejudiced discussions": _HATE,
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


def _parse(entry: str) -> Categories:
    certain, _, possible = entry.partition("|")
    sure = frozenset(certain.split())
    return Categories(sure, sure | frozenset(possible.split()) | VAGUE)


def _flat(raw: Any) -> list[str]:
    """The labels of a row, most specific last. Some files hold lists or dictionaries, a few as text."""
    if isinstance(raw, dict):
        return [str(v) for v in raw.values()]
    if isinstance(raw, (list, tuple)):
        return [str(v) for v in raw]
    return [str(raw)]


def _aegis(names: Iterable[str]) -> Categories:
    codes = frozenset(AEGIS[n] for n in (x.strip().casefold() for x in names) if n in AEGIS)
    if not codes:
        return UNKNOWN
    near = {c for code in codes for c in AEGIS_NEIGHBOURS[code].split()}
    return Categories(codes, codes | near | VAGUE)


def _first(table: dict[str, str], labels: Iterable[str]) -> Categories:
    for label in labels:
        if label in table:
            return _parse(table[label])
    return UNKNOWN


def _prefix(table: dict[str, str], label: str) -> Categories:
    """The first entry whose key stands in the label; tables list the specific keys first."""
    return next((_parse(e) for key, e in table.items() if key in label), UNKNOWN)


def _salad(labels: list[str]) -> Categories:
    match = re.match(r"O\d+", labels[-1])
    return _first(SALAD, [match.group()] if match else [])


def _trustllm(labels: list[str]) -> Categories:
    return _first(TRUSTLLM, [label.split(":")[0] for label in reversed(labels)])


def map_categories(source: str, raw: Any) -> Categories:
    """The Aegis 2.0 categories of an unsafe text of `source` with its own label `raw`."""
    labels = _flat(raw)
    if source.startswith("aegis"):
        return _aegis(name for label in labels for name in label.split(","))
    if source.startswith("mlc_"):
        return _first(MLC, labels)
    if source == "salad_mcq_queries":
        return _salad(labels)
    if source == "trustllm_misuse":
        return _trustllm(labels)
    if source == "catqa_en":
        fine = _first(CATQA_FINE, labels[1:])
        return fine if fine is not UNKNOWN else _first(CATQA, labels)
    if source == "aart":
        return _prefix(AART, labels[0])
    if source == "med_safety_train":
        return _prefix(MEDICAL, labels[0])
    if source == "toxigen_demonstrations":
        return _parse(_HATE)
    tables = {
        "forbidden_questions": FORBIDDEN_QUESTIONS,
        "figstep_safebench": FIGSTEP,
        "sap200": SAP,
        "jbb_artifacts": JBB,
        "davidson": COMMENTS,
        "edos": COMMENTS,
        "hatemoji_train": COMMENTS,
        "surge_toxicity": COMMENTS,
        "diasafety_train": DIASAFETY,
        "diasafety_val": DIASAFETY,
        "safetext": SAFETEXT,
    }
    return _first(tables.get(source, {}), labels)
