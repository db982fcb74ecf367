from __future__ import annotations

import pickle

import pytest

from aegis_edge import errors
from aegis_edge.policy import Policy

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AegisError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_an_aegis_error_with_an_optional_hint(kind):
    assert issubclass(kind, errors.AegisError)
    assert kind("what").hint is None
    assert (str(kind("what", hint="do this")), kind("what", hint="do this").hint) == ("what", "do this")


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_processes_with_their_hint(kind):
    back = pickle.loads(pickle.dumps(kind("what", hint="do this")))
    assert (type(back), str(back), back.hint) == (kind, "what", "do this")


def test_policy_errors_that_know_their_key_cross_processes_too():
    with pytest.raises(errors.PolicyError) as caught:
        Policy.from_dict({"thresholds": {"prompt": 2}})
    back = pickle.loads(pickle.dumps(caught.value))
    assert (type(back), str(back), back.hint) == (type(caught.value), str(caught.value), caught.value.hint)
