"""What a run trains and validates on: the user's files, and texts that the project makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from aegis_edge.data.alarming import alarming
from aegis_edge.data.canttalk import DISTRACTORS
from aegis_edge.data.canttalk import SOURCE as TURNS
from aegis_edge.data.everyday import everyday
from aegis_edge.data.files import SPLITS, holds_dialogues, read_dialogues, read_file, split_of
from aegis_edge.data.generate import CONTRASTS, PEOPLE, TEMPLATES, generate
from aegis_edge.data.mapping import Categories, map_categories
from aegis_edge.data.records import DataError, Record
from aegis_edge.data.topics import TOPICS, topical
from aegis_edge.train.framed import framed
from aegis_edge.train.longer import longer
from aegis_edge.train.policies import NAMES
from aegis_edge.train.sampling import bucket_of, split
from aegis_edge.train.written import refused

# Held out from training more than the rest, to see how the guard does on sources it has not met.
HELD_OUT: dict[str, float] = {"surge_toxicity": 1.0, "aegis2_dv_sft": 0.4, "benign_coconot_pref": 0.25}
VALIDATION_SHARE = 0.04


def data_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(files to train on, files to keep away from) of `paths`: files, and folders of them.

    A file is for training where its name says so ("train.jsonl.gz", "refusals_train.json"), where it holds
    dialogues and its name tells no other split (canttalkaboutthis_topic_control_mixtral.jsonl), or where the
    user named the file itself; what a folder holds beside is for evaluation. Raises DataError where none is
    left.
    """
    train: list[Path] = []
    kept: list[Path] = []
    for path in paths:
        if not path.is_dir():
            train.append(path)
            continue
        for file in sorted(
            f for f in path.iterdir() if f.name.removesuffix(".gz").endswith((".json", ".jsonl"))
        ):
            told = split_of(file)
            training = told == "train" or (told not in SPLITS.values() and holds_dialogues(file))
            (train if training else kept).append(file)
    if not train:
        raise DataError(
            "no file to train on in " + ", ".join(map(str, paths)),
            hint="its name has the word train; or name it",
        )
    return train, kept


def _records(path: Path) -> list[Record]:
    if holds_dialogues(path):
        return [record for dialogue in read_dialogues(path) for record in dialogue.records()]
    return list(read_file(path))


def _topic_of(record: Record) -> str | None:
    """The name of a dialogue's topic; None for other records."""
    return record.raw_category.name if record.source in (TURNS, DISTRACTORS) else None


def load_data(
    paths: Sequence[Path],
    seed: int,
    generated: int,
    contrasts: int,
    each_topic: int,
    written: Sequence[Record] = (),
) -> tuple[list[Record], list[Record]]:
    """(train, validation) records: the files' rows, own prompts and contrasts, topics, texts `written` by the
    base, texts in frames, longer texts, and refusals.

    Own prompts stay clear of the prompts in the folders' evaluation files, and so do dialogues of the topics
    there. Raises DataError.
    """
    train_files, kept = data_files(paths)
    held_out = [record for file in kept for record in _records(file)]
    held = [record.prompt for record in held_out] + everyday()
    gone = {_topic_of(record) for record in held_out} - {None}
    records = [r for file in train_files for r in _records(file) if _topic_of(r) not in gone]
    for source, count, templates in (("generated", generated, TEMPLATES), ("people", generated // 2, PEOPLE)):
        for _, text in generate(count, seed, held, templates):
            records.append(Record(text, None, False, None, Categories(), None, source))
    for code, text in generate(contrasts, seed, held, CONTRASTS):
        categories = map_categories("aegis", NAMES[code])
        records.append(Record(text, None, True, None, categories, code, "contrasts"))
    records += alarming(held)
    records += topical(TOPICS, each_topic, seed)
    records += written
    train, validation = split(records, HELD_OUT, VALIDATION_SHARE, seed)
    for number, part in enumerate((train, validation)):
        usable = [r for r in part if bucket_of(r)]
        part += framed(usable, seed + number, held)
        part += longer(usable, len(part) // 20, seed + number)
        part += refused(usable, len(part) // 40, seed + number)
    return train, validation
