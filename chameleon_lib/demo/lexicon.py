"""The words of the embedded world: cues of movie tags, words of praise and blame, slang.

Every word list is our own. The sentences of the world are combinations of these words, so that
train, dev and test users can share the vocabulary without sharing a single sentence.
"""

from __future__ import annotations

CUES: dict[str, tuple[str, ...]] = {
    "sci-fi": ("robot", "spaceship", "android", "cyborg", "starport"),
    "based on a book": ("novel", "chapter", "author", "manuscript", "library"),
    "comedy": ("clown", "prankster", "joke", "jester", "sitcom"),
    "action": ("stuntman", "explosion", "chase", "commando", "bomb"),
    "twist ending": ("impostor", "secret", "riddle", "double", "mask"),
    "dystopia": ("regime", "bunker", "curfew", "wasteland", "drone"),
    "dark comedy": ("undertaker", "funeral", "hangman", "coffin", "morgue"),
    "classic": ("gramophone", "monocle", "duke", "carriage", "opera"),
    "psychology": ("therapist", "dream", "memory", "phobia", "asylum"),
    "fantasy": ("wizard", "dragon", "elf", "spell", "castle"),
    "romance": ("wedding", "kiss", "lover", "valentine", "bride"),
    "thought-provoking": ("philosopher", "paradox", "question", "monk", "chessboard"),
    "social commentary": ("strike", "election", "slum", "protest", "senator"),
    "violence": ("gangster", "knife", "brawl", "assassin", "vendetta"),
    "true story": ("diary", "witness", "veteran", "archive", "survivor"),
}
MOVIE_LINKS = ("meets", "haunts", "follows", "saves", "loses", "finds", "hides", "chases")
PLACES = ("Oslo", "Cairo", "Lima", "Delhi", "Quito", "Perth", "Kyoto", "Malta", "Tunis", "Bonn")

PRODUCTS = (
    "kettle", "lamp", "backpack", "keyboard", "blender", "tent", "mattress", "camera", "scarf",
    "drill", "stroller", "guitar", "heater", "notebook", "saddle", "umbrella",
)  # fmt: skip
SENTIMENT: dict[int, tuple[str, ...]] = {
    1: ("terrible", "awful", "dreadful", "useless", "horrible"),
    2: ("poor", "weak", "flimsy", "dull", "shabby"),
    3: ("okay", "average", "passable", "ordinary", "middling"),
    4: ("good", "solid", "pleasant", "handy", "sturdy"),
    5: ("superb", "perfect", "brilliant", "wonderful", "amazing"),
}
REVIEW_STARTS = ("The", "My", "This", "Our")
REVIEW_ENDS = (
    "for camping", "for winter", "for school", "for travel", "at home", "at work", "in summer",
    "in use", "for kids", "for parties", "on trips", "on Sundays",
)  # fmt: skip

TWEET_SUBJECTS = (
    "My friends", "My parents", "The neighbors", "The kids", "My cousins", "The teachers",
    "My sisters", "The players", "The critics", "My brothers", "The tourists", "The students",
)  # fmt: skip
SLANG: dict[str, str] = {
    "love": "luv", "want": "wanna", "know": "kno", "miss": "mizz", "need": "needz", "like": "lyk",
    "great": "gr8", "nice": "nyc", "cool": "kewl", "best": "bezt", "late": "l8", "sweet": "swt",
    "tonight": "2nite", "tomorrow": "2moro", "today": "2day", "everyday": "evryday",
    "together": "2gether", "forever": "4eva",
}  # fmt: skip
TWEET_VERBS = ("love", "want", "know", "miss", "need", "like")
TWEET_ADJECTIVES = ("great", "nice", "cool", "best", "late", "sweet")
TWEET_NOUNS = (
    "music", "pizza", "movie", "party", "garden", "game", "coffee", "beach", "show", "puppy",
    "museum", "recipe", "parade", "picnic", "concert", "cartoon",
)  # fmt: skip
TWEET_TIMES = ("tonight", "tomorrow", "today", "everyday", "together", "forever")
OPENERS = ("omg", "honestly", "well", "yo", "dude")
CLOSERS = (":)", "lol", "xoxo", "!!!", "haha", "<3")
