"""What is fitted on attacked histories and asked of others: the two arenas of the study.

*Own*: a share of a victim's history is attacked, and the victim's own insight, edit or adapter is
made of it. *Pool*: some of a group of users are malicious, one edit is fitted for all, and others
are asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.checks import check_fit, guarded
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import (
    Contrast,
    PlainPrompts,
    change_ratio,
    contrasts_from_pairs,
    fit_each,
    sample_outputs,
)
from chameleon_lib.core.pairs import (
    PreferencePair,
    decode_settings,
    max_new_tokens,
    plain_prompt,
    prompt_texts,
    write_insights,
)
from chameleon_lib.core.robust import outliers
from chameleon_lib.studies.s13_attacks import (
    ALWAYS,
    DENY,
    FLOOD,
    MARK,
    MARKER,
    OWN,
    POOL,
    TAG,
    Attack,
    Crowd,
    Person,
    flooding,
    hidden,
    history_pairs,
    poisoned,
    shown,
    without,
)
from chameleon_lib.studies.s13_bench import (
    AIMS,
    ALL,
    CAP,
    CHANGE,
    CHECK,
    CLEAN,
    FITTED,
    GUARDS,
    IN_FIT,
    IN_OWN,
    IN_POOL,
    INSIGHT,
    ITEMS,
    KEPT,
    LEASH,
    LORA,
    NO_EDIT,
    NONE,
    ONE,
    PAIRS,
    PAPER,
    POOLED,
    QUARTERS,
    TRIM,
    Bench,
    Library,
    Z,
)
from chameleon_lib.studies.s13_lora import Adapted, Adapters, tune


class Arena(ABC):
    """What both arenas share: the people, and how they are asked."""

    name = ""

    def __init__(self, desk: Bench, task: str, seed: int) -> None:
        self.desk, self.task, self.seed = desk, task, seed
        self.backbone, self.settings = desk.backbone, desk.settings
        self.rows: list[dict[str, Any]] = []
        self.logs: list[dict[str, Any]] = []

    @cached_property
    def crowd(self) -> Crowd:
        """The people, made when the first of the steps needs them."""
        return self.desk.crowd(self.task, self.seed)

    @property
    @abstractmethod
    def steps(self) -> list[str]:
        """What was done to the histories, condition by condition."""

    def filled(self, step: int) -> dict[str, list[dict[str, Any]]]:
        """Rows and logs of one of :attr:`steps`, which needs none of the others."""
        self.rows, self.logs = [], []
        self.fill(step)
        return {"rows": self.rows, "logs": self.logs}

    @abstractmethod
    def fill(self, step: int) -> None:
        """Runs a condition."""

    def contrasts(self, pairs: Sequence[PreferencePair]) -> list[Contrast]:
        return contrasts_from_pairs(self.task, pairs, [], self.settings)

    def prompts(self, people: Sequence[Person], kind: str = "instruct") -> Prepared:
        """The victims' queries, read; an insight is written from the history shown."""
        users = [shown(person, self.settings) for person in people]
        if kind == "insight":
            told = write_insights(
                self.backbone, self.task, [user.items for user in users], self.settings
            )
            users = [replace(u, insight_p=p or "-", insight_n=n or "-")
                     for u, (p, n) in zip(users, told, strict=True)]  # fmt: skip
        return self.backbone.prepare(prompt_texts(self.task, users, kind, self.settings))

    @torch.no_grad()
    def ask(
        self, read: Prepared, people: Sequence[Person], method: str, *, edit: Edit | None = None,
        adapters: Adapters | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Answers and scores of people whose queries are read; a row each, in their order."""
        wanted, aims = [person.wanted for person in people], AIMS[self.task]
        goals = {
            DENY: [person.generic for person in people], ALWAYS: [TAG] * len(people),
            MARK: [f"{text} {MARKER}" for text in wanted],
        }  # fmt: skip
        limit, decode = max_new_tokens(self.task, self.settings), decode_settings(self.settings)
        texts = [""] * len(people)
        scores = {name: torch.zeros(len(people)) for name in ("own", "nats", *aims)}
        for rows, part in self.backbone.in_turn(read):
            own = None if edit is None else edit.rows(rows)
            at_work: AbstractContextManager[Any] = nullcontext()
            if adapters is None:
                said = self.backbone.generate_prepared(
                    part, max_new_tokens=limit, edit=own, decode=decode
                )
            else:
                said = adapters.answers(self.backbone, part, rows, limit)
                at_work = Adapted(self.backbone, adapters.rows(rows))
            for row, text in zip(rows, said, strict=True):
                texts[row] = text
            with at_work:
                for name, answers in (("own", wanted), *((aim, goals[aim]) for aim in aims)):
                    some = [answers[row] for row in rows]
                    scores[name][rows] = self.backbone.score(part, some, edit=own).cpu()
        tokens = [len(self.backbone.codec.answers([text])[0]) + 1 for text in wanted]
        return [
            {
                "task": self.task, "arena": self.name, "method": method, "seed": self.seed,
                "user": f"{self.seed}/{person.user.id}", "answer": text,
                "right": float(text == person.wanted),
                "nats": -float(scores["own"][at]) / tokens[at],
                **{f"hit {aim}": float(_does(aim, text, person)) for aim in aims},
                **{f"odds {aim}": float(scores[aim][at] - scores["own"][at]) for aim in aims},
            }
            for at, (person, text) in enumerate(zip(people, texts, strict=True))
        ]  # fmt: skip

    def put(
        self, rows: Sequence[dict[str, Any]], attack: str, malicious: str, guard: str
    ) -> None:
        """Files rows under a condition and a guard."""
        where = {"attack": attack, "malicious": malicious, "guard": guard}
        self.rows += [{**row, **where} for row in rows]

    def log(self, attack: str, malicious: str, arm: str, **told: float) -> None:
        where = {"task": self.task, "arena": self.name, "attack": attack, "malicious": malicious}
        self.logs.append({**where, "guard": arm, "seed": self.seed, **told})


def _does(aim: str, text: str, person: Person) -> bool:
    """Whether an answer is what the attacker wants."""
    if aim == DENY:
        return text != person.wanted
    return text == TAG if aim == ALWAYS else MARKER in text.split()


class Own(Arena):
    """A share of every victim's history is attacked; each has an insight, edit or adapter.

    What one victim gets does not depend on the others, so that where the item filter leaves a
    history as it is, nothing is done again.
    """

    name = IN_OWN

    @cached_property
    def attacks(self) -> list[Attack | None]:
        """None of them first."""
        return [None, *(attack for attack in OWN if attack.task == self.task)]

    @property
    def steps(self) -> list[str]:
        return [_told(attack) for attack in self.attacks]

    def fill(self, step: int) -> None:
        attack, people = self.attacks[step], list(self.crowd.victims)
        if attack is not None:
            people = [poisoned(p, attack, attack.share, self.seed) for p in people]
        told = _told(attack)
        found = self.condition(people)
        if attack is None:
            self._own = self._edits
        filtered = self.filtered(told, people)
        some = [at for at, (new, old) in enumerate(zip(filtered, people, strict=True))
                if new != old]  # fmt: skip
        again = self.condition([filtered[at] for at in some], paper=False) if some else {}
        for method, guards in found.items():
            redone = again.get(method, {})
            mixed: dict[str, list[Any]] = {}
            for guard in (NONE, ALL):
                mixed[guard] = list(guards.get(guard, guards[NONE]))
                for at, row in zip(some, redone.get(guard, redone.get(NONE, [])), strict=False):
                    mixed[guard][at] = row
            for guard, rows in guards.items():
                if guard != ALL:
                    self.put(rows, told, "", guard)
            if method != PAPER:
                self.put(mixed[NONE], told, "", ITEMS)
                self.put(mixed[ALL], told, "", ALL)
        self.log(told, "", LEASH, strength=self._strength)
        if step == 1 and self.task == "LaMP_2":
            self.beside(told, people)

    def beside(self, told: str, attacked: Sequence[Person]) -> None:
        """How far the own edits of others moved: every second victim is attacked, none of them.

        All are fitted in one batch, as a server would.
        """
        clean = self.crowd.victims
        mixed = [bad if at % 2 else good
                 for at, (bad, good) in enumerate(zip(attacked, clean, strict=True))]  # fmt: skip
        before = self._own or self.fits(self.learned(clean))  # the clean step may be in the store
        after = self.fits(self.learned(mixed))
        far = [
            max(float((getattr(a, name) - getattr(b, name)).abs().max())
                for name in ("theta_p", "theta_n"))
            for a, b in zip(before[::2], after[::2], strict=True)
        ]  # fmt: skip
        self.log(told, "", NONE, **{"others moved": max(far)})

    def filtered(self, told: str, people: Sequence[Person]) -> list[Person]:
        """The people without the items whose influence on their own fit is an outlier."""
        pairs = [history_pairs(person, self.settings, PAIRS + KEPT) for person in people]
        flat = self.contrasts([pair for own in pairs for pair in own])
        pulls = self.desk.method.influences(flat).split([len(own) for own in pairs])
        clean = {p.user.id: set(p.user.history) for p in self.crowd.victims}
        left, counts = [], {True: [0, 0], False: [0, 0]}
        for person, own, pull in zip(people, pairs, pulls, strict=True):
            out = dict(zip([pair.query_id for pair in own], outliers(pull, Z).tolist(),
                           strict=True))  # fmt: skip
            for item in person.user.history:
                if item.id in out:
                    attacked = item not in clean[person.user.id]
                    counts[attacked][0] += out[item.id]
                    counts[attacked][1] += 1
            left.append(without(person, frozenset(id_ for id_, gone in out.items() if gone)))
        told_of = {"attacked left out": counts[True], "honest left out": counts[False]}
        self.log(told, "", ITEMS, **{n: a / max(1, b) for n, (a, b) in told_of.items()})
        return left

    def condition(
        self, people: Sequence[Person], *, paper: bool = True
    ) -> dict[str, dict[str, list[Any]]]:
        """Method → guard → rows, on these histories; the filter of items is the caller's.

        The paper's edit, which a filter has nothing to save from, need not be made again.
        """
        victims, s = list(people), self.settings
        read, lessons = self.prompts(victims), self.learned(victims)
        plain = self.ask(read, victims, NO_EDIT)
        found: dict[str, dict[str, list[Any]]] = {
            NO_EDIT: {NONE: plain},
            INSIGHT: {NONE: self.ask(self.prompts(victims, "insight"), victims, INSIGHT)},
        }
        if paper:
            found[PAPER] = {NONE: self.paper(read, victims, lessons)}
        learned = [self.contrasts(own) for own, _ in lessons]
        owners = [at for at, (_, kept) in enumerate(lessons) for _ in kept]
        kept = [pair for _, own in lessons for pair in own]
        edits = self.fits(lessons)
        self._edits, whole = edits, Edit.stack(edits, allow_missing=True)
        free = self.ask(read, victims, FITTED, edit=whole)
        passed = self.better(self.gains(kept, owners, edit=whole), owners, len(victims))
        weak = self.leashed(read, victims, edits, learned, plain)

        def checked(rows: list[Any], let: Sequence[bool]) -> list[Any]:
            return [row if fine else {**without_it, "method": row["method"]}
                    for row, without_it, fine in zip(rows, plain, let, strict=True)]  # fmt: skip

        found[FITTED] = {NONE: free, CHECK: checked(free, passed), LEASH: weak,
                         ALL: checked(weak, passed)}  # fmt: skip
        lora = tune(self.backbone, learned, steps=s.fit_steps, shared=False, seed=self.seed)
        tuned = self.ask(read, victims, LORA, adapters=lora)
        passed = self.better(self.gains(kept, owners, adapters=lora), owners, len(victims))
        found[LORA] = {NONE: tuned, CHECK: checked(tuned, passed), ALL: checked(tuned, passed)}
        return found

    def fits(self, lessons: Sequence[tuple[Sequence[PreferencePair], Any]]) -> list[Edit]:
        """Everybody's own edit, all fitted in one batch."""
        own = [self.contrasts(pairs) for pairs, _ in lessons]
        return fit_each(self.backbone, own, self.desk.layers, self.settings, seed=self.seed)

    def learned(
        self, people: Sequence[Person]
    ) -> list[tuple[list[PreferencePair], list[PreferencePair]]]:
        """Per person the pairs of the own fit, and those that it is checked on."""
        found = []
        for person in people:
            own = history_pairs(person, self.settings, PAIRS + KEPT)
            cut = len(own) - KEPT if len(own) > 2 * KEPT else len(own)
            found.append((own[:cut], own[cut:]))
        return found

    def paper(
        self, read: Prepared, people: Sequence[Person], lessons: Sequence[tuple[Any, Any]]
    ) -> list[Any]:
        """Rows of CHAMELEON's edit of every victim's own pairs, all found at once."""
        counts = [len(own) for own, _ in lessons]
        if not any(counts):
            return self.ask(read, people, PAPER)
        h_p, h_n = self.desk.method.activations([pair for own, _ in lessons for pair in own])
        shape = (len(counts), h_p.shape[0], max(counts), h_p.shape[2])  # (U, L, K, d)
        p, n, mask = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape[:3]).bool()
        for at, (own_p, own_n) in enumerate(
            zip(h_p.split(counts, dim=1), h_n.split(counts, dim=1), strict=True)
        ):
            p[at, :, : counts[at]], n[at, :, : counts[at]] = own_p, own_n
            mask[at, :, : counts[at]] = True
        able = [at for at, count in enumerate(counts) if count]
        found = find_directions("paper", p[able], n[able], self.settings, self.seed, mask[able])
        edits: list[Edit | None] = [None] * len(counts)
        for row, at in enumerate(able):
            edits[at] = Edit.of(
                self.settings, self.desk.layers, found.theta_p[row], found.theta_n[row]
            )
        return self.ask(read, people, PAPER, edit=Edit.stack(edits, allow_missing=True))

    @staticmethod
    def better(gains: Tensor, owners: Sequence[int], n: int) -> list[bool]:
        """Whose kept texts got likelier, in the mean; true of those who keep none."""
        own: list[list[float]] = [[] for _ in range(n)]
        for gain, at in zip(gains.tolist(), owners, strict=True):
            own[at].append(gain)
        return [not values or float(np.mean(values)) > 0 for values in own]

    @torch.no_grad()
    def gains(
        self, pairs: Sequence[PreferencePair], owners: Sequence[int], *, edit: Edit | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:  # fmt: skip
        """log p of what users wrote over the unedited model, nats per token, ``(K,)``."""
        found = torch.zeros(len(pairs))
        if not pairs:
            return found
        read = self.backbone.prepare([plain_prompt(pair, self.settings) for pair in pairs])
        for rows, part in self.backbone.in_turn(read):
            some, own = [pairs[row].answer_p for row in rows], [owners[row] for row in rows]
            plain = self.backbone.score(part, some, reduce="mean")
            at_work: AbstractContextManager[Any] = nullcontext()
            if adapters is not None:
                at_work = Adapted(self.backbone, adapters.rows(own))
            with at_work:
                new = self.backbone.score(
                    part, some, edit=None if edit is None else edit.rows(own), reduce="mean"
                )
            found[rows] = (new - plain).cpu()
        return found

    def leashed(
        self, read: Prepared, people: Sequence[Person], edits: Sequence[Edit],
        learned: Sequence[Sequence[Contrast]], plain: Sequence[Any],
    ) -> list[Any]:  # fmt: skip
        """Rows under edits weakened to :data:`CHANGE`, in quarters of their strength."""
        levels, some = [0.0] * len(edits), [own[0] for own in learned if own][:16]
        live = [at for at, edit in enumerate(edits) if edit.changes_anything]
        if live:
            x = sample_outputs(self.backbone, some, edits[live[0]], self.settings)
        for at in live:
            fits = (one for one in QUARTERS if change_ratio(x, _scaled(edits[at], one)) <= CHANGE)
            levels[at] = next(fits, 0.0)
        rows = [{**row, "method": FITTED} for row in plain]
        for level in sorted(set(levels) - {0.0}):
            weak: list[Edit | None] = [
                _scaled(edit, level) if own == level else None
                for edit, own in zip(edits, levels, strict=True)
            ]
            asked = self.ask(read, people, FITTED, edit=Edit.stack(weak, allow_missing=True))
            rows = [new if own == level else old
                    for new, old, own in zip(asked, rows, levels, strict=True)]  # fmt: skip
        self._strength = float(np.mean(levels))
        return rows

    _strength = 1.0
    _edits: Sequence[Edit] = ()  # of the latest condition
    _own: Sequence[Edit] = ()  # of clean histories


def _told(attack: Attack | None) -> str:
    return CLEAN if attack is None else attack.name


def _scaled(edit: Edit, factor: float) -> Edit:
    return replace(edit, alpha_p=factor * edit.alpha_p, alpha_n=factor * edit.alpha_n)


class Pool(Arena):
    """Some of a group are malicious; one edit or adapter is fitted for all, and others are asked.

    A prompt insight is made of the own history, which nobody else can reach: it has no row here.
    """

    name = IN_POOL

    @cached_property
    def jobs(self) -> list[tuple[Attack | None, int, tuple[str, ...], bool, bool]]:
        """Attack, malicious users, guards, whether one user floods, and whether rivals are made."""
        asked, everything = self.desk.asked, tuple(GUARDS)
        jobs: list[tuple[Attack | None, int, tuple[str, ...], bool, bool]] = [
            (None, 0, everything, False, True)
        ]
        for attack in (one for one in POOL if one.task == self.task):
            some = (NONE, CAP, TRIM, ALL) if attack.aim == DENY else everything
            jobs.append((attack, asked.tenth, some, False, True))
            if attack.aim != DENY:
                jobs.append((attack, 1, (NONE, CAP, ALL), True, False))
                jobs += [(attack, number, (NONE, ALL), False, False)
                         for number in asked.malicious if number != asked.tenth]  # fmt: skip
        return jobs

    @property
    def steps(self) -> list[str]:
        return [f"{_told(sent)}, {ONE if flood else number} of the group"
                for sent, number, _, flood, _ in self.jobs]  # fmt: skip

    @cached_property
    def pools(self) -> list[tuple[list[PreferencePair], list[PreferencePair], set[str], str]]:
        """What every job learns from."""
        return [self.pool(*job[:2], flood=job[3]) for job in self.jobs]

    @cached_property
    def read(self) -> Prepared:
        """The victims' queries."""
        return self.prompts(self.crowd.victims)

    @cached_property
    def whole(self) -> PlainPrompts:
        """The prompts of all jobs, each read once for all of them."""
        texts = [c.prompt for pairs, *_ in self.pools for c in self.contrasts(pairs)]
        return PlainPrompts(self.backbone, texts)

    def fill(self, step: int) -> None:
        if step == 0:
            self.put(self.ask(self.read, self.crowd.victims, NO_EDIT), CLEAN, "0", NONE)
        sent, _, guards, _, others = self.jobs[step]
        pairs, held, bad, who = self.pools[step]
        self.condition(_told(sent), who, pairs, held, bad, guards, others=others)

    def members(
        self, people: Sequence[Person], attack: Attack | None, number: int
    ) -> Iterator[Person]:
        """The people, the first ``number`` of them malicious."""
        for at, person in enumerate(people):
            turns = attack is not None and at < number
            yield hidden(person, attack, POOLED, self.seed) if turns and attack else person

    def pool(
        self, attack: Attack | None, number: int, *, flood: bool
    ) -> tuple[list[PreferencePair], list[PreferencePair], set[str], str]:
        """Pairs of a group, those it is checked on, the malicious members, and how many."""
        s, crowd = self.settings, self.crowd
        group = list(self.members(crowd.group, attack, number))
        among = round(number / len(group) * len(crowd.held))
        held = self.members(crowd.held, attack, among)
        pairs = [pair for person in group for pair in history_pairs(person, s, POOLED)]
        bad, who = {person.user.id for person in group[:number]}, str(number)
        if flood and attack is not None:
            who, mine = ONE, group[0].user.id
            loud = flooding(crowd.group[0], attack, group[len(group) // 2 :], self.seed)
            pairs = [
                *history_pairs(loud, s, FLOOD), *(pair for pair in pairs if pair.user_id != mine)
            ]  # fmt: skip
        texts = [pair for person in held for pair in history_pairs(person, s, POOLED)]
        return pairs, texts, bad, who

    def condition(
        self, told: str, who: str, pairs: Sequence[PreferencePair],
        held: Sequence[PreferencePair], bad: set[str], guards: Sequence[str], *, others: bool,
    ) -> None:  # fmt: skip
        """Fits of one pool under each of some guards, and what the others are then told."""
        victims, edits = self.crowd.victims, dict[Any, Edit]()
        for guard in guards:
            wanted = GUARDS[guard]
            method = self.desk.method.with_(**{k: wanted[k] for k in wanted if k in IN_FIT})
            stays = method.screened(pairs)
            left = [pair for pair in pairs if pair not in stays]
            share = {}
            for name, evil in (("attacked left out", True), ("honest left out", False)):
                gone, there = (sum((p.user_id in bad) == evil for p in some)
                               for some in (left, pairs))  # fmt: skip
                share[name] = gone / max(1, there)
            self.log(told, who, guard, **share)
            own = method.settings
            key = (tuple(stays), own.guard_cap, own.guard_trim)
            if key not in edits:
                lessons = self.contrasts(stays)
                read = Library(self.whole, [one.prompt for one in lessons])
                edits[key] = method.preference_fit(lessons, read, self.seed).edit
            edit = self.let(edits[key], wanted, pairs, held, told, who, guard)
            self.put(self.ask(self.read, victims, FITTED, edit=edit), told, who, guard)
            if others and guard in (NONE, ALL):
                self.rivals(method, stays, told, who, guard)

    def let(
        self, edit: Edit, wanted: dict[str, Any], pairs: Sequence[PreferencePair],
        held: Sequence[PreferencePair], told: str, who: str, guard: str,
    ) -> Edit:  # fmt: skip
        """What the leash and the check let pass of an edit."""
        after = {k: wanted[k] for k in wanted if k not in IN_FIT}
        if not after:
            return edit
        method = self.desk.method.with_(**after)
        before, edit = edit, method.leashed(edit, pairs)
        note = {"strength": edit.alpha_p / before.alpha_p}
        if method.settings.check_edit != "off":
            check = check_fit(self.backbone, edit, held, method.settings)
            edit, check = guarded(edit, check, method.settings)
            note |= {"harmed": check.harmed, "gain": check.gain,
                     "refused": float(check.action == "zero")}  # fmt: skip
        self.log(told, who, guard, **note)
        return edit

    def rivals(
        self, method: Chameleon, stays: Sequence[PreferencePair], told: str, who: str, guard: str
    ) -> None:
        """CHAMELEON's edit and a shared adapter of the same pairs."""
        victims = self.crowd.victims
        shared = tune(
            self.backbone, [self.contrasts(stays)], steps=self.settings.fit_steps, shared=True,
            batch=32, seed=self.seed, prompts=self.whole,
        )  # fmt: skip
        self.put(self.ask(self.read, victims, LORA, adapters=shared), told, who, guard)
        paper = method.with_(theta_method="paper")
        kept = paper.screened(stays)
        found = paper.directions("paper", *paper.activations(kept), self.seed)
        edit = found.to_edit(self.settings)
        self.put(self.ask(self.read, victims, PAPER, edit=edit), told, who, guard)
