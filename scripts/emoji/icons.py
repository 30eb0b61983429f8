"""Which icon draws which word: names in the Iconify sets of Noto Emoji and Fluent Emoji."""

from ddpo_core.emoji.words import ANIMALS, UNSEEN_ANIMALS, UNSEEN_OBJECTS

SETS = ("noto", "fluent-emoji-flat", "fluent-emoji")

# Faces and whole bodies are both drawn where both exist; every other word is drawn by the icon of its own name.
_SPECIAL = {
    "cat": ("cat", "cat-face"),
    "dog": ("dog", "dog-face"),
    "horse": ("horse", "horse-face"),
    "monkey": ("monkey", "monkey-face"),
    "rabbit": ("rabbit", "rabbit-face"),
    "sheep": ("ewe",),
    "cow": ("cow", "cow-face"),
    "tiger": ("tiger", "tiger-face"),
    "whale": ("whale", "spouting-whale"),
    "squirrel": ("chipmunk",),
    "mouse": ("mouse", "mouse-face"),
    "bee": ("honeybee",),
    "pig": ("pig", "pig-face"),
    "camel": ("camel", "two-hump-camel"),
    "dragon": ("dragon", "dragon-face"),
    "fish": ("fish", "tropical-fish"),
    "chick": ("front-facing-baby-chick",),
    "apple": ("red-apple",),
    "book": ("closed-book",),
    "car": ("automobile",),
    "clock": ("alarm-clock",),
    "tree": ("deciduous-tree",),
}

PROPS = (
    "bicycle",
    "sponge",
    "soap",
    "bubbles",
    "fork-and-knife-with-plate",
    "chess-pawn",
    "open-book",
    "guitar",
    "kite",
)

WORDS = (*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS)

ICONS = {word: _SPECIAL.get(word, (word,)) for word in WORDS}
