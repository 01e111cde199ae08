"""One recipe: all that a compilation does, as a frozen value that is checked when it is made."""

from graphprune.recipe.named import RECIPES
from graphprune.recipe.options import Option
from graphprune.recipe.recipe import RECOVERING, VERSION, Recipe, recipe_options
from graphprune.recipe.sections import Allocation, Judging, Proof, Refit, Scoring, Selection

__all__ = [
    "RECIPES",
    "RECOVERING",
    "VERSION",
    "Allocation",
    "Judging",
    "Option",
    "Proof",
    "Recipe",
    "Refit",
    "Scoring",
    "Selection",
    "recipe_options",
]
