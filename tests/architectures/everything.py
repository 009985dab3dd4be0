"""All architectures there are."""

from tests.architectures import own, own_others  # noqa: F401 - they register as they are imported
from tests.architectures.of_transformers import OF_TRANSFORMERS
from tests.architectures.zoo import OWN, Architecture

ZOO: list[Architecture] = [*OWN.values(), *OF_TRANSFORMERS]

# Warnings that are right: by architecture, the rule and what is wrong with the initialisation.
DEFENDED: dict[str, dict[str, str]] = {
    "transformers-efficientnet": {
        "init_too_small": "its library draws what batch normalisation multiplies by around 0, not 1, as weights are "
        "always loaded into it: after 37 layers nothing is left of the signal",
    },
    "transformers-mt5": {
        "tied_mismatch": "the table of words, with a spread of 1, is its head: the first loss is 18.9 of 96 words",
    },
}
