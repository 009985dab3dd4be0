"""Remedies: against which illnesses, and in which order."""

import pytest

from lightning_weightwatch.advice import ORDER, all_remedies, what_to_try
from lightning_weightwatch.rules import all_rules

REMEDIES = all_remedies()


def test_the_order_is_that_in_which_one_tunes():
    assert ORDER == (
        "initialisation",
        "batch size",
        "epochs",
        "learning rate",
        "structure",
        "loss",
        "activation",
        "regularisation",
    )
    places = [ORDER.index(remedy.topic) for remedy in REMEDIES]
    assert places == sorted(set(places))


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.topic)
def test_a_remedy_treats_illnesses_there_are_in_one_sentence_each(remedy):
    assert remedy.treats.keys() <= all_rules().keys()
    assert all(text[0].isupper() and text.endswith(".") for text in remedy.treats.values())


@pytest.mark.parametrize("rule", all_rules())
def test_every_illness_has_a_remedy(rule):
    assert what_to_try([rule])


def test_remedies_of_several_illnesses_come_in_tuning_order_and_once():
    found = what_to_try(["non_finite_gradients", "vanishing_gradients", "vanishing_gradients"])
    topics = [topic for topic, _ in found]
    assert topics == sorted(topics, key=ORDER.index)
    assert (
        len(found)
        == len(set(found))
        == len(what_to_try(["vanishing_gradients"])) + len(what_to_try(["non_finite_gradients"]))
    )


def test_an_illness_of_the_users_own_has_no_remedy_here_and_no_error():
    assert what_to_try(["cold_feet"]) == []
    assert what_to_try([]) == []
