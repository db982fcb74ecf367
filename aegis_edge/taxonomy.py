"""The Aegis 2.0 taxonomy: 12 core and 9 fine-grained categories, Needs Caution and Other.

Names are those of the paper (arXiv 2501.09004). Codes S1 to S23 are those of the model card of
Llama-3.1-Nemotron-Safety-Guard-8B-v3; other endpoints number differently, names are the same everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Group = Literal["core", "fine-grained", "needs caution", "other"]


@dataclass(frozen=True)
class Hazard:
    """One category of the taxonomy. `aliases` are names that `find` accepts besides `name` and `code`.

    `openai` is the OpenAI-moderations category that says the same, or None: then there is no score for it
    there. Several hazards may share one; the score is then their maximum.
    """

    code: str
    name: str
    group: Group
    aliases: tuple[str, ...] = ()
    openai: str | None = None


# In S-code order. Aliases that differ only in case, punctuation or "and" are not listed: `fold` drops those.
HAZARDS: tuple[Hazard, ...] = (
    Hazard("S1", "Violence", "core", openai="violence"),
    Hazard("S2", "Sexual", "core", ("Sexual Content",), openai="sexual"),
    Hazard("S3", "Criminal Planning/Confessions", "core", ("Criminal Planning",), openai="illicit"),
    Hazard("S4", "Guns and Illegal Weapons", "core", ("Guns", "Illegal Weapons"), openai="illicit/violent"),
    Hazard("S5", "Controlled/Regulated Substances", "core", ("Controlled Substances",), openai="illicit"),
    Hazard("S6", "Suicide and Self Harm", "core", ("Suicide", "Self Harm"), openai="self-harm"),
    Hazard("S7", "Sexual (minor)", "core", ("Sexual Minors",), openai="sexual/minors"),
    Hazard("S8", "Hate/Identity Hate", "core", ("Hate", "Identity Hate", "Hate Speech"), openai="hate"),
    Hazard("S9", "PII/Privacy", "core", ("PII", "Privacy")),
    Hazard("S10", "Harassment", "core", openai="harassment"),
    Hazard("S11", "Threat", "core", ("Threats",), openai="harassment/threatening"),
    Hazard("S12", "Profanity", "core"),
    Hazard("S13", "Needs Caution", "needs caution"),
    Hazard("S14", "Other", "other"),
    Hazard("S15", "Manipulation", "fine-grained"),
    Hazard("S16", "Fraud/Deception", "fine-grained", ("Fraud", "Deception"), openai="illicit"),
    Hazard("S17", "Malware", "fine-grained", openai="illicit"),
    Hazard(
        "S18",
        "High Risk Gov Decision Making",
        "fine-grained",
        ("High Risk Government Decision Making", "Government Decision Making", "High-risk gov. decisions"),
    ),
    Hazard(
        "S19",
        "Political/Misinformation/Conspiracy",
        "fine-grained",
        ("Political/Misinfo/Conspiracy", "Political", "Misinformation", "Conspiracy"),
    ),
    Hazard("S20", "Copyright/Trademark/Plagiarism", "fine-grained", ("Copyright", "Trademark", "Plagiarism")),
    Hazard("S21", "Unauthorized Advice", "fine-grained", ("Unauthorised Advice",)),
    Hazard("S22", "Illegal Activity", "fine-grained", ("Illegal Activities",), openai="illicit"),
    Hazard("S23", "Immoral/Unethical", "fine-grained", ("Immoral", "Unethical")),
)


def fold(name: str) -> str:
    """The form in which names are compared: without case, width, punctuation, spacing and the word "and"."""
    words = re.split(r"[\W_]+", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(word for word in words if word not in ("", "and"))


def find(name: str) -> Hazard | None:
    """The hazard that a name, alias or code means ("guns/illegal weapons", "Sexual Minor", "s7"), or None."""
    return _BY_NAME.get(fold(name))


def suggest(name: str) -> str | None:
    """The taxonomy name nearest in spelling to an unknown one, or None."""
    from difflib import get_close_matches  # only errors need it

    near = get_close_matches(fold(name), _BY_NAME, n=1, cutoff=0.7)
    return _BY_NAME[near[0]].name if near else None


_BY_NAME: dict[str, Hazard] = {
    fold(name): hazard for hazard in HAZARDS for name in (hazard.name, hazard.code, *hazard.aliases)
}
