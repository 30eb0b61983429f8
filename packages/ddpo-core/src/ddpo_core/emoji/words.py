"""The vocabulary of the embedded world: what its pictures show and its captions say.

`ANIMALS` are the 45 of the paper (Black et al. 2023, appendix on prompts), in its order. The `UNSEEN_` families are in
the pretraining data but in no finetuning prompt, so they show what finetuning did to prompts it never touched.
"""

ANIMALS = (
    *("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion"),
    *("tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale"),
    *("dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig"),
    *("turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo"),
)

UNSEEN_ANIMALS = (
    *("badger", "bison", "boar", "chick", "crab", "crocodile", "donkey", "dragon", "eagle", "elephant", "flamingo"),
    *("giraffe", "hamster", "hippopotamus", "jellyfish", "koala", "leopard", "lobster", "octopus", "otter", "owl"),
    *("panda", "parrot", "peacock", "penguin", "rhinoceros", "rooster", "scorpion", "seal", "skunk", "sloth", "snail"),
    *("squid", "swan", "unicorn"),
)

UNSEEN_OBJECTS = (
    *("airplane", "apple", "balloon", "banana", "bicycle", "book", "camera", "candle", "car", "clock", "crown"),
    *("cupcake", "guitar", "house", "key", "pizza", "rocket", "star", "tree", "umbrella"),
)

ACTIVITIES = ("washing dishes", "riding a bike", "playing chess")

UNSEEN_ACTIVITIES = ("reading a book", "playing the guitar", "flying a kite")

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
