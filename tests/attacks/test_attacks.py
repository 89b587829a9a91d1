"""What the figures rest on: callers that do not share rows, budgets that hold, runs that can be repeated, and arithmetic."""

import itertools
import json

import numpy as np
import pytest

import adaptive
import attacks
import benign
import encoder
import evasion
import figures
import language
import logits
import thief
import victims
from oracle import Direct, Recording, Refused, Spent, request


@pytest.fixture(scope="module", params=["digits", "table"])
def victim(request):
    return victims.ALL[request.param]()


def test_pools_share_no_row(victim):
    seen = [{row.tobytes() for row in rows} for rows, _ in victim.pools.values()]
    for one, other in itertools.combinations(seen, 2):
        assert len(one & other) <= 1  # breast_cancer and digits each have a row or two twice


def test_victims_are_worth_stealing(victim):
    rows, labels = victim.pools["holdout"]
    assert (victim.predict(rows)[1] == labels).mean() > 0.9


@pytest.mark.parametrize("kind", benign.KINDS)
def test_benign_days_have_their_length_stay_in_range_and_repeat_themselves(victim, kind):
    def days():
        random = np.random.default_rng(5)
        return list(benign.day(benign.KINDS[kind](victim, random, "test"), 150))

    made = days()
    rows = np.concatenate(made)
    assert len(rows) == 150 and rows.min() >= victim.low and rows.max() <= victim.high
    assert all(np.array_equal(one, other) for one, other in zip(made, days(), strict=True))


def test_rows_like_the_owners_are_of_many_callers_and_the_same_each_time(victim):
    rows = benign.like_the_owners(victim, 88)
    assert rows.shape == (88, victim.dim) and len(np.unique(rows, axis=0)) > 60
    assert np.array_equal(rows, benign.like_the_owners(victim, 88))
    owners = {row.tobytes() for row in np.concatenate(list(benign.day(benign.users(victim, np.random.default_rng(1), "calibrate"), 300)))}
    assert sum(row.tobytes() in owners for row in rows) <= 1


def test_numbers_are_written_so_that_they_are_read_back_as_they_were():
    rows = np.random.default_rng(1).normal(0, 1000, (2, 5)).astype(np.float32)
    rows[1] = [0, 1, 16, -3, 2**20]
    read = json.loads(request(rows))["inputs"][0]
    assert read["shape"] == [2, 5] and np.array_equal(np.array(read["data"], np.float32).reshape(2, 5), rows)


@pytest.mark.parametrize("name", [name for name in attacks.NAMES if name not in attacks.OUT_OF_RANGE])
def test_attacks_use_up_their_queries_and_never_more(victim, name):
    if name not in attacks.applicable(victim):
        pytest.skip("not for this victim")
    oracle = Direct(victim, 90, 8)
    found, ended = attacks.run(name, oracle, 3, rehearsed=True)
    assert ended in ("spent", "done") and 60 <= oracle.asked <= 90, (ended, oracle.asked)
    assert (name in attacks.THEFT or name.startswith("jacobian")) == (not found)


def test_one_row_past_the_budget_is_not_answered(victim):
    oracle = Direct(victim, 3)
    oracle.ask(np.zeros((3, victim.dim)))
    with pytest.raises(Spent):
        oracle.ask(np.zeros((1, victim.dim)))


def test_who_remembers_does_not_ask_again(victim):
    oracle = Direct(victim, 3, remember=True)
    first = oracle.ask(np.zeros((1, victim.dim)))
    assert np.array_equal(oracle.ask(np.zeros((5, victim.dim))), np.repeat(first, 5, 0)) and oracle.asked == 1


def test_keys_take_turns(tmp_path):
    victim, recording = victims.digits(), Recording(tmp_path / "r.jsonl")
    Direct(victim, 6, 1, False, recording, ["a", "b", "c"], "k").ask(np.zeros((6, 64)))
    recording.close()
    lines = [json.loads(line) for line in open(tmp_path / "r.jsonl")]
    assert [line["caller"] for line in lines] == ["a", "b", "c"] * 2 and lines[0]["answer"]["outputs"][0]["shape"] == [1, 10]


def test_a_linear_model_is_had_for_as_many_equations_as_it_has_unknowns():
    victim = victims.table()
    rows = victim.clip(np.random.default_rng(1).normal(victim.mean, victim.sd, (200, 30)))
    answers = victim.predict(rows)[0]
    clear = (answers.min(axis=1) > 1e-6)
    assert clear.sum() > 40
    rows, answers = rows[clear][:40], answers[clear][:40]
    assert thief.fidelity(victim, thief.linear(victim, rows, answers, 1e-30)) > 0.97
    assert thief.best(victim, rows[:3], answers[:3]) < 0.97


def test_a_copy_of_nothing_is_no_better_than_chance():
    victim = victims.digits()
    assert thief.best(victim, np.zeros((0, 64), np.float32), np.zeros((0, 10), np.float32)) == 0.1


def test_another_answer_far_away_is_no_evasion(victim):
    random = np.random.default_rng(2)
    row = victim.natural(random, "attack", 1)
    other = evasion.other_class(Direct(victim, 1), random, row)
    assert not evasion.successful(victim, row, row) and not evasion.successful(victim, row, other)


def test_the_rehearsed_defence_refuses_what_is_near(victim):
    defence = adaptive.Rehearsed(Direct(victim, 9), 0.5)
    row = victim.natural(np.random.default_rng(3), "attack", 1)
    defence.ask(row)
    with pytest.raises(Refused):
        defence.ask(row + 0.4 * victim.unit())
    defence.ask(row + 0.6 * victim.unit())


def test_what_an_attacker_feels_are_refusals_and_labels_where_probabilities_were():
    class Scripted:
        def __init__(self, *answers):
            self.answers = list(answers)

        def ask(self, _):
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return np.array([answer])

    felt = adaptive.Suspicion(Scripted([0.9, 0.1], Refused(429, "x"), [1.0, 0.0], [0.0, 1.0]))
    assert [felt.ask(None) is None for _ in range(4)] == [False, True, True, False]


def test_intervals_are_those_of_clopper_and_pearson():
    assert figures.clopper_pearson(0, 3000)[1] == pytest.approx(1 - 0.025 ** (1 / 3000))
    assert figures.clopper_pearson(3, 3000) == pytest.approx((0.000206, 0.002919), abs=2e-6)
    assert figures.clopper_pearson(5, 5) == (pytest.approx(0.025 ** (1 / 5)), 1.0)


def test_runs_without_an_alarm_count_as_never():
    assert figures.queries([4, 9, 7], 4) == ("7", "never")
    assert figures.queries([], 3) == ("never", "never")


def test_callers_of_the_language_model_repeat_themselves_and_their_requests_can_be_sent():
    one, other = (list(language.callers(1, 12)) for _ in range(2))
    for (name, kind, mine), (_, _, again) in zip(one, other, strict=True):
        bodies = list(itertools.islice(mine, 20))
        assert bodies == list(itertools.islice(again, 20)) and kind in name
        assert all(json.loads(json.dumps(body))["messages"][-1]["content"] for body in bodies)
    assert len(language.sentences()) > 1000


def test_an_encoder_that_is_a_map_of_words_is_had_and_one_of_noise_is_not():
    random = np.random.default_rng(6)
    texts, held = (list(itertools.chain.from_iterable(itertools.islice(encoder.theft_natural(np.random.default_rng(seed)), 20))) for seed in (1, 2))
    true = random.normal(0, 1, (encoder.FEATURES, 16))
    assert encoder.stolen(texts, encoder.features(texts) @ true, held, encoder.features(held) @ true) > 0.65
    assert abs(encoder.stolen(texts, random.normal(0, 1, (len(texts), 16)), held, encoder.features(held) @ true)) < 0.3
    assert encoder.stolen([], np.zeros((0, 16)), held, true[: len(held)]) == 0.0


def test_the_width_of_a_hidden_state_is_the_rank_of_its_logits():
    random = np.random.default_rng(4)
    matrix = random.normal(0, 1, (48, 20)) @ random.normal(0, 1, (20, 48)) + random.normal(0, 1, (48, 1))
    assert logits.width(matrix) == 20
    assert logits.width(random.normal(0, 1, (48, 48))) is None and logits.width(np.zeros((0, 48))) is None
