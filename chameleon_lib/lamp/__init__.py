"""LaMP-2, LaMP-3 and LaMP-7: tasks, prompts, data files, metrics and trivial baselines."""

from __future__ import annotations

from chameleon_lib.lamp.baselines import BASELINES, baselines_for
from chameleon_lib.lamp.data import find_split, load_users, write_lamp
from chameleon_lib.lamp.metrics import (
    class_ids,
    evaluate,
    higher_is_better,
    label_histogram,
    macro_f1,
    per_sample_scores,
)
from chameleon_lib.lamp.prompts import (
    ANSWER_CUE,
    answer_prompt,
    history_block,
    history_line,
    history_lines,
    insight_prompt,
    official_prompt,
    query_line,
    unseen_prompt,
)
from chameleon_lib.lamp.records import HistoryItem, Query, User
from chameleon_lib.lamp.samples import Sample, read_golds, stream_samples
from chameleon_lib.lamp.tasks import (
    TAGS,
    TASKS,
    Task,
    get_task,
    is_valid_answer,
    official_input,
    parse_score,
)
from chameleon_lib.lamp.users import (
    check_disjoint,
    group_samples_into_users,
    split_users_by_hash,
)

__all__ = [
    "ANSWER_CUE",
    "BASELINES",
    "TAGS",
    "TASKS",
    "HistoryItem",
    "Query",
    "Sample",
    "Task",
    "User",
    "answer_prompt",
    "baselines_for",
    "check_disjoint",
    "class_ids",
    "evaluate",
    "find_split",
    "get_task",
    "group_samples_into_users",
    "higher_is_better",
    "history_block",
    "history_line",
    "history_lines",
    "insight_prompt",
    "is_valid_answer",
    "label_histogram",
    "load_users",
    "macro_f1",
    "official_input",
    "official_prompt",
    "parse_score",
    "per_sample_scores",
    "query_line",
    "read_golds",
    "split_users_by_hash",
    "stream_samples",
    "unseen_prompt",
    "write_lamp",
]
