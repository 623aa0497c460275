from __future__ import annotations

from pathlib import Path

import pytest

from featherfed.server.errors import ServerError
from featherfed.server.rounds.sparsity import SparsitySchedule
from featherfed.server.settings.settings import Settings, load_settings

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
