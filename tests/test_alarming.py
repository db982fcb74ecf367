from aegis_edge.data.alarming import SOURCE, alarming
from aegis_edge.data.everyday import everyday
from aegis_edge.data.generate import words
from aegis_edge.train.sampling import SHARES, bucket_of


def test_alarming_texts_are_harmless_whole_and_stand_once() -> None:
    records = alarming()
    assert len(records) > 5000
    assert all(r.prompt == r.prompt.strip() and words(r.prompt) for r in records)
    assert len({r.prompt.casefold() for r in records}) == len(records)
    answered = [r for r in records if r.response is not None]
    assert len(answered) == 300  # the other pairs are whole dialogues
    assert all(r.unsafe is False and r.response_unsafe is False and r.response for r in answered)


def test_alarming_texts_are_trained_on_as_safe() -> None:
    assert {bucket_of(r) for r in alarming()} == {"safe"}
    assert SHARES["safe"][SOURCE] > 0


def test_an_alarming_text_that_repeats_five_words_of_held_out_text_is_left_out() -> None:
    every = alarming()
    gone = next(r.prompt for r in every if len(r.prompt.split()) > 8)
    left = alarming([" ".join(gone.split()[1:8])])
    assert gone not in {r.prompt for r in left}
    assert len(left) < len(every)
    assert len(alarming(["an unrelated text of five words"])) == len(every)


def test_everyday_questions_stand_once() -> None:
    questions = everyday()
    assert len(set(questions)) == len(questions) == 80 and all(q == q.strip() != "" for q in questions)
