from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from featherfed.server.errors import ServerError
from featherfed.server.rounds.sparsity import SparsitySchedule
from featherfed.server.settings.settings import Settings, load_settings
from featherfed.tasks.task import image_task

EXAMPLE = Path(__file__).parent.parent / "examples" / "run.toml"


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return load_settings(path)


def test_the_example_is_valid_and_names_every_section() -> None:
    settings = load_settings(EXAMPLE)
    assert set(settings.model_fields_set) == set(Settings.model_fields) - {"notes", "task"}


def test_an_empty_file_is_a_run_with_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roundz = 3", r"roundz: unknown key; did you mean 'rounds'\? Known keys: .*seed"),
        ("[training]\nepoch = 3", r"training\.epoch: unknown key; did you mean 'epochs'\?"),
        ("rounds = 0", r"rounds: .*greater than or equal to 1 \(got 0\)"),
        ("[training]\nlearning_rate = 'fast'", r"training\.learning_rate: .*\(got 'fast'\)"),
        ("[compression]\nuplink = 'zpd'", r"compression\.uplink: .*unknown stage 'zpd'.*Stages: "),
        ("[optimization]\nmethod = 'shrink'", r"optimization\.method: .*'none', 'prune'"),
        ("rounds = 1\n[optimization]\nmethod = 'prune'", r"begin_round \(2\) <= end_round"),
        ("[clients]\nquorum = 2", r"clients\.quorum: .*less than or equal to 1"),
        ("[evaluation]\nevery_client = true", r"every_client: unknown key; did you mean 'clients'"),
        ("name = '../x'", r"name: .*pattern"),
        ("rounds = [", r"is not valid TOML"),
    ],
)
def test_a_wrong_key_is_named_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ServerError, match=f"(?s){message}"):
        load(tmp_path, text)


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)a: unknown.*b: unknown"):
        load(tmp_path, "a = 1\nb = 2")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"cannot read run file .*nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_where_it_listens_may_change_in_mid_run_but_not_how_it_trains(tmp_path: Path) -> None:
    plain = load(tmp_path, "")
    assert load(tmp_path, "[server]\nport = 1").fingerprint == plain.fingerprint
    assert load(tmp_path, "[training]\nepochs = 1").fingerprint != plain.fingerprint
    assert load(tmp_path, "[compression]\nuplink = 'zstd'").fingerprint != plain.fingerprint
    assert load(tmp_path, "[evaluation]\nclients = 3").fingerprint == plain.fingerprint


def test_runs_of_before_evaluation_clients_keep_their_fingerprints(tmp_path: Path) -> None:
    """Of `every_client = true`, the default then, and of `every_client = false`."""
    everyone = "63b6a58575fb1d8d5a036c2e7863e9737c5c751582bc3346da329a5b6c8466ca"
    nobody = load(tmp_path, "[evaluation]\nclients = 0\ndataset = 'x'").fingerprint
    assert load(tmp_path, "[evaluation]\ndataset = 'digits'").fingerprint == everyone
    assert nobody == "6d785881f0f4fbfb52d04e95b1ed9a06d03fae77abe9aac188b189c72a035d3c"


def test_sparsity_rises_to_its_end_and_stays() -> None:
    schedule = SparsitySchedule(0.8, begin=2, end=5)
    values = [schedule.at(r) for r in range(1, 9)]
    assert values[0] == 0
    assert values[1:5] == sorted(values[1:5])
    assert 0 < values[1] < values[3] < 0.8
    assert values[4:] == [0.8] * 4


# ---- the task, and who evaluates ----

TASK = """
[task]
inputs = [
  {name = "sensors", dtype = "float32", shape = [24, 3], standardize = true},
  {name = "place", dtype = "int32", shape = [1], vocabulary = 50},
]
target = {kind = "values", shape = [2]}
"""


def test_a_task_is_read_from_its_section(tmp_path: Path) -> None:
    settings = load(tmp_path, TASK)
    task = settings.explicit_task
    assert task is not None
    assert [given.shape for given in task.inputs] == [(24, 3), (1,)]
    assert (task.target.kind, task.loss, task.metrics) == (
        "values", "mean_squared_error", ("mae", "rmse"),
    )  # fmt: skip
    assert task.standardizes
    huber = load(tmp_path, "[training]\nloss = 'huber'" + TASK)
    assert huber.explicit_task is not None
    assert huber.explicit_task.loss == "huber"
    assert len({settings.fingerprint, huber.fingerprint, load(tmp_path, "").fingerprint}) == 3
    assert load(tmp_path, "").explicit_task is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"float32"', '"float64"', r"task\.inputs\.0: input 'sensors': no dtype 'float64'; use"),
        ("[24, 3]", "[24, 0]", r"task\.inputs\.0\.shape\.1: .*greater than or equal to 1"),
        ("vocabulary", "vocabluary", r"inputs\.1\.vocabluary: unknown key; did you mean 'vocabu"),
        (", vocabulary = 50", "", r"task\.inputs\.1: input 'place': tokens need a vocabulary"),
        ('"values"', '"boxes"', r"task\.target: no kind of target 'boxes'; use one of class, lab"),
        ('"place"', '"sensors"', r"task: two inputs have one name"),
        ("target", "metrics = ['accuracy']\ntarget", r"task: the metric accuracy does not fit"),
        ("target", "metrics = ['iou']\ntarget", r"task: no metric 'iou'; use one of accuracy"),
        ("[task]", "[training]\nloss = 'binary_crossentropy'\n[task]", r"training\.loss: the loss"),
        ("[24, 3]", "[24, 9000]", r"standardises 9000 features, and a message takes .* of 8192"),
        ("[task]", "[training]\nloss = 'focal'\n[task]", r"training\.loss: .*mean_squared_error"),
        (
            "[task]", "[evaluation]\ntarget = {metric = 'r2', value = 1}\n[task]",
            r"evaluation\.target\.metric: 'r2' is no metric of the task; use one of loss, mae",
        ),
        (
            "[task]", "[evaluation]\nholdout = 0\ntarget = {metric = 'mae', value = 1}\n[task]",
            r"evaluation\.target needs somebody to evaluate",
        ),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_is_named_by_its_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ServerError, match=f"(?s){message}"):
        load(tmp_path, TASK.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "holdout", "by"),
    [
        ("", 0.1, "clients"),
        ("dataset = 'digits'", 0.0, "server"),
        ("dataset = 'digits'\nholdout = 0.2", 0.2, "server"),
        ("holdout = 0.5", 0.5, "clients"),
        ("holdout = 0", 0.0, None),
    ],
)
def test_who_evaluates_follows_from_data_set_and_holdout(
    tmp_path: Path, text: str, holdout: float, by: str | None
) -> None:
    found = load(tmp_path, f"[evaluation]\n{text}").evaluation
    assert (found.share_held_out, found.evaluated_by) == (holdout, by)


PRIVATE = """
[compression]
uplink = "exact"
broadcast = "aggregate"
[privacy]
noise_multiplier = 1.0
[evaluation]
clients = 0
"""


def test_a_private_run_takes_no_sums_without_noise(tmp_path: Path) -> None:
    assert load(tmp_path, PRIVATE + "dataset = 'digits'").private
    assert load(tmp_path, PRIVATE + "holdout = 0").private
    with pytest.raises(ServerError, match=r"evaluation\.holdout would let .* set it to 0"):
        load(tmp_path, PRIVATE)
    with pytest.raises(ServerError, match=r"standardize = true lets clients send sums"):
        load(tmp_path, PRIVATE + "holdout = 0" + TASK)


def test_a_target_counts_once_the_model_is_as_sparse_as_it_shall_be(tmp_path: Path) -> None:
    goal = "[evaluation]\ndataset = 'digits'\ntarget = {metric = 'accuracy', value = 0.9}"
    settings = load(tmp_path, goal)
    assert not settings.is_reached({"loss": 0.1, "accuracy": 0.89}, 1)
    assert settings.is_reached({"loss": 9.0, "accuracy": 0.9}, 1)
    assert not settings.is_reached({}, 1)
    assert not settings.is_reached({"accuracy": None}, 1)
    lower = load(tmp_path, goal.replace("'accuracy', value = 0.9", "'loss', value = 0.2"))
    assert lower.is_reached({"loss": 0.1}, 1)
    assert not lower.is_reached({"loss": 0.3}, 1)
    prunes = load(tmp_path, "[optimization]\nmethod = 'prune'\nend_round = 5\n" + goal)
    assert [prunes.is_reached({"accuracy": 1.0}, n) for n in (4, 5)] == [False, True]


def test_a_task_of_the_data_set_is_checked_like_one_of_the_file(tmp_path: Path) -> None:
    many = image_task((8, 8, 1), [str(number) for number in range(9000)])
    goal = "[evaluation]\nholdout = 0.1\ntarget = {metric = 'f1', value = 0.9}"
    load(tmp_path, "").check_task(many)
    with pytest.raises(ServerError, match="'f1' is no metric of the task; use one of loss, acc"):
        load(tmp_path, goal).check_task(many)
    f1 = replace(many, metrics=("f1",))
    with pytest.raises(ServerError, match="metrics f1 need 27002 sums of every client"):
        load(tmp_path, goal).check_task(f1)
    load(tmp_path, "[evaluation]\ndataset = 'x'").check_task(f1)
