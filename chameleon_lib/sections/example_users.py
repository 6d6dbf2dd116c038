"""A small table of invented users that ships with the kit, shaped like a practitioner's own.

The texts and tags come from the embedded world, from sentences that no embedded model was trained
on. Some rows are spoilt on purpose, so that the import has something to report. The CSV beside
this module is made by ``python -m chameleon_lib.sections.example_users``.
"""

from __future__ import annotations

import csv
import io
import random
from datetime import date, timedelta
from pathlib import Path

from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.kit.paths import replace_text

TASK = "LaMP_2"
QUERIES = 4  # rows per user that the examples hold out
TABLE = Path(__file__).with_name("example_users.csv")
_NAMES = (
    "ada", "bruno", "carla", "dmitri", "elif", "fatou", "goran", "hana",
    "ivo", "jun", "kofi", "lucia", "mei", "nils", "olga", "pavel",
    "rosa", "sami", "tove", "uma", "vera", "wim", "yara", "zeno",
)  # fmt: skip
_HEADER = ("user", "text", "label", "time")
_SEED = 23


def example_csv() -> str:
    """The table as CSV text: clean rows in random order, then the spoilt ones."""
    settings = WorldSettings(
        users=(0, 0, len(_NAMES)), queries=QUERIES, history=(10, 14), seed=_SEED
    )
    rng = random.Random(_SEED)
    rows: list[tuple[str, str, str, str]] = []
    for name, user in zip(_NAMES, build_world(TASK, settings).users["test"], strict=True):
        day = date(2024, 1, 1) + timedelta(days=rng.randrange(60))
        said = [(item.text, str(item.label)) for item in user.history]
        said += [(query.text, str(query.gold)) for query in user.queries]
        for text, label in said:
            day += timedelta(days=rng.randint(1, 9))
            rows.append((name, text, label, day.isoformat()))
    rng.shuffle(rows)
    first = rows[0]
    rows[1] = (*rows[1][:2], rows[1][2].capitalize(), rows[1][3])  # another way to write a tag
    rows += [
        first,  # the same row twice
        ("ada", "A lighthouse hides a sailor in Riga", "", "2024-02-11"),
        ("bruno", "A mirror meets a stranger", "horror", "2024-03-05"),
        ("carla", "", "comedy", "2024-03-19"),
        ("", "A baker finds a letter", "comedy", "2024-04-02"),
        ("dmitri", "A storm follows a train", "action", "last Tuesday"),
        ("quentin", "A clown saves a wedding", "comedy", "2024-02-01"),
        ("quentin", "A judge meets a poet", "classic", "2024-02-09"),
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(rows)
    return buffer.getvalue()


if __name__ == "__main__":
    replace_text(TABLE, example_csv())
