"""The TOML of a jury, and every refusal of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis_edge.label.endpoint import EndpointJudge
from aegis_edge.label.errors import JuryError
from aegis_edge.label.jury import EndpointSettings, GuardSettings, read_jury
from aegis_edge.label.local import GuardJudge

ENDPOINT = '[[judges]]\nname = "a"\nkind = "endpoint"\nbase_url = "http://h/v1"\nmodel = "m"\n'
GUARD = '[[judges]]\nname = "g"\nkind = "guard"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jury.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    jury = read_jury(write(tmp_path, ENDPOINT + GUARD))
    assert jury.quorum == 2
    endpoint, guard = jury.judges
    assert endpoint == EndpointSettings("a", "http://h/v1", "m")
    assert endpoint.parameters == {"temperature": 0, "max_tokens": 256}
    assert guard == GuardSettings("g")


def test_everything_set(tmp_path: Path) -> None:
    more = (
        'key_env = "KEY"\ntimeout = 5\nrequests_per_minute = 90.5\nconcurrency = 2\nretries = 0\n'
        "backoff = 0.5\n"
        "max_wait = 10\ngive_up_after = 0\n"
        'parameters = { seed = 7, response_format = { type = "json_object" } }\n'
    )
    jury = read_jury(write(tmp_path, f'quorum = 1\n{ENDPOINT}{more}{GUARD}path = "my/guard"\nthreads = 1\n'))
    endpoint, guard = jury.judges
    assert jury.quorum == 1 and isinstance(endpoint, EndpointSettings) and endpoint.timeout == 5.0
    assert endpoint.parameters == {"seed": 7, "response_format": {"type": "json_object"}}
    assert guard == GuardSettings("g", tmp_path / "my/guard", 1)


def test_the_example_of_the_module_is_a_jury(tmp_path: Path) -> None:
    from aegis_edge.label import jury

    example = "\n".join(jury.__doc__.splitlines()[1:])
    assert [judge.name for judge in read_jury(write(tmp_path, example)).judges] == ["large", "guard"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x =\n", "not valid TOML: .*line 1"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("", "no judges"),
        ("judges = 3", "no judges"),
        ("judges = []", "no judges"),
        ("judges = [1]", "no judges"),
        ("quorom = 1\n" + GUARD, "unknown key 'quorom' for the file"),
        ("quorum = 2\n" + GUARD, "`quorum` is 1 to 1, the number of judges; found 2"),
        ("quorum = 0\n" + GUARD, "`quorum` is 1 to 1, the number of judges; found 0"),
        ("quorum = true\n" + GUARD, "`quorum` is 1 to 1, the number of judges; found True"),
        ('[[judges]]\nkind = "guard"', "judge 1: `name` is"),
        ('[[judges]]\nname = "a b"', "judge 1: `name` is"),
        (GUARD + GUARD, "two judges are named 'g'"),
        ("".join(GUARD.replace('"g"', f'"g{n}"') for n in range(65)), "more than 64 judges"),
        ('[[judges]]\nname = "a"\nkind = "person"', "judge 'a': `kind` is endpoint or guard; found 'person'"),
        ('[[judges]]\nname = "a"\nkind = "endpoint"\nmodel = "m"', "judge 'a': `base_url` is missing"),
        (ENDPOINT.replace('model = "m"', ""), "judge 'a': `model` is missing"),
        (ENDPOINT.replace('"m"', '""'), "judge 'a': `model` is empty"),
        (ENDPOINT.replace('"m"', "5"), "judge 'a': `model` is text; found 5"),
        (ENDPOINT + "tiemout = 5", "judge 'a': unknown key 'tiemout' for an endpoint"),
        (ENDPOINT + 'timeout = "5"', "`timeout` is a number; found '5'"),
        (ENDPOINT + "timeout = 0", "`timeout` is more than 0"),
        (ENDPOINT + "timeout = nan", "`timeout` is more than 0"),
        (ENDPOINT + "requests_per_minute = 0", "`requests_per_minute` is more than 0"),
        (ENDPOINT + "requests_per_minute = inf", "`requests_per_minute` is more than 0"),
        (ENDPOINT + "concurrency = 0", "`concurrency` is 1 to 64"),
        (ENDPOINT + "concurrency = 1.5", "`concurrency` is a whole number; found 1.5"),
        (ENDPOINT + "concurrency = true", "`concurrency` is a whole number; found True"),
        (ENDPOINT + "retries = 21", "`retries` is 0 to 20"),
        (ENDPOINT + "backoff = -1", "`backoff` is 0 to 60 s"),
        (ENDPOINT + "max_wait = -1", "`max_wait` is 0 to 86400 s"),
        (ENDPOINT + "give_up_after = -1", r"`give_up_after` is 0 \(never\) or more"),
        (ENDPOINT + 'key_env = ""', "`key_env` is empty"),
        (ENDPOINT + "parameters = { stream = true }", "`parameters` can not set 'stream'"),
        (ENDPOINT + 'parameters = { model = "x" }', "`parameters` can not set 'model'"),
        (ENDPOINT + "parameters = { a = [{ b = 2020-01-01 }] }", "`parameters` holds what JSON can not"),
        (ENDPOINT + "parameters = { a = nan }", "`parameters` holds what JSON can not"),
        (ENDPOINT.replace("http://h/v1", "ftp://h/v1"), "`base_url` is http"),
        (ENDPOINT.replace("http://h/v1", "h/v1"), "`base_url` is http"),
        (ENDPOINT.replace("http://h/v1", "http:///v1"), "`base_url` is http"),
        (ENDPOINT.replace("http://h/v1", "http://h/v 1"), "`base_url` is http"),
        (ENDPOINT.replace("http://h/v1", "http://h:99999/v1"), "`base_url` is no URL"),
        (ENDPOINT.replace("http://h/v1", f"http://{'h' * 70}/v1"), "`base_url` is no URL"),
        (ENDPOINT.replace("http://h/v1", "http://u:p@h/v1"), "`base_url` holds a user or a password"),
        (
            ENDPOINT.replace("http://h/v1", "http://h/v1?a=b"),
            r"`base_url` ends with the path: no \? and no #",
        ),
        (GUARD + "threads = 0", "judge 'g': `threads` is 1 to 1024"),
        (GUARD + "path = 1", "judge 'g': `path` is text; found 1"),
        (GUARD + 'model = "m"', "judge 'g': unknown key 'model' for a guard"),
    ],
)
def test_refusals(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(JuryError, match=message) as caught:
        read_jury(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_hints(tmp_path: Path) -> None:
    for text, hint in (("", "write a table"), (ENDPOINT + "tiemout = 5", "did you mean 'timeout'?")):
        with pytest.raises(JuryError) as caught:
            read_jury(write(tmp_path, text))
        assert hint in (caught.value.hint or "")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(JuryError, match=r"can not be read"):
        read_jury(tmp_path / "missing.toml")
    (tmp_path / "jury.toml").write_bytes(b"\xff")
    with pytest.raises(JuryError, match=r"can not be read"):
        read_jury(tmp_path / "jury.toml")


@pytest.mark.parametrize("environment", [{}, {"KEY": ""}, {"KEY": " \n"}])
def test_a_key_that_is_not_set(environment: dict[str, str]) -> None:
    settings = EndpointSettings("a", "http://h/v1", "m", key_env="KEY")
    with pytest.raises(JuryError, match=r"judge 'a': the variable KEY is not set") as caught:
        EndpointJudge(settings, environment)
    assert "export KEY=" in (caught.value.hint or "")


def test_a_key_that_no_header_can_hold_is_not_shown() -> None:
    settings = EndpointSettings("a", "http://h/v1", "m", key_env="KEY")
    for key in ("one\r\ntwo: three", "schlüssel"):
        with pytest.raises(JuryError, match=r"the key in KEY holds control or other characters") as caught:
            EndpointJudge(settings, {"KEY": key})
        assert key not in str(caught.value)


def test_a_guard_that_can_not_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JuryError, match=r"judge 'g': "):
        GuardJudge.load(GuardSettings("g", tmp_path))
    monkeypatch.setenv("AEGIS_EDGE_GUARD", str(tmp_path / "none"))
    with pytest.raises(JuryError, match=r"judge 'g': .AEGIS_EDGE_GUARD names .*none, which is no folder"):
        GuardJudge.load(GuardSettings("g"))


def test_the_digest_covers_what_votes_depend_on_and_nothing_else() -> None:
    def digest(**change: object) -> str:
        settings = {"name": "a", "base_url": "http://h/v1", "model": "m", **change}
        return EndpointJudge(EndpointSettings(**settings), {"K": "secret"}).digest  # type: ignore[arg-type]

    for change in ({"model": "n"}, {"base_url": "http://i/v1"}, {"parameters": {"temperature": 1}}):
        assert digest(**change) != digest()
    for change in ({"timeout": 3.0}, {"retries": 0}, {"key_env": "K"}, {"name": "b"}, {"concurrency": 1}):
        assert digest(**change) == digest()
