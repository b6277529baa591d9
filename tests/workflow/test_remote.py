"""Push and pull against real servers: what is missing or bad is named, never accepted, and healed by the next push."""

import configparser
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import S3, free_port, http_server, s3_server, ssh_server

from twohop.lineage._objects import _multipart_etag

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
STAGE = "extract_activations@tiny-vlm"
FILE = "results/extract_activations/tiny-vlm/activations.h5"
CREDENTIALS = ("access_key_id", "secret_access_key", "session_token", "password", "user", "keyfile", "passphrase")


@dataclass(frozen=True)
class Store:
    """What a remote holds, seen from behind."""

    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    names: Callable[[], list[str]]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    pytest.importorskip("moto", reason="moto[server] is not installed")
    with s3_server() as server:
        yield server


@pytest.fixture
def folder_store(finished: Any, tmp_path: Path) -> tuple[Any, Store]:
    """The finished study with a folder as remote."""
    root = tmp_path / "store"

    def write(key: str, data: bytes) -> None:
        (root / key).chmod(0o644)
        (root / key).write_bytes(data)
        (root / key).chmod(0o444)  # as DVC leaves it

    def names() -> list[str]:
        return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]

    store = Store(lambda k: (root / k).read_bytes(), write, lambda k: (root / k).unlink(), names)
    return _use(finished, str(root)), store


@pytest.fixture
def s3_store(finished: Any, tmp_path: Path, s3: S3) -> tuple[Any, Store]:
    """The finished study with an S3 remote of its own."""
    prefix = f"{tmp_path.parent.name}-{tmp_path.name}"
    tree = _use(replace(finished, extra=s3.env), f"s3://{s3.bucket}/{prefix}", endpointurl=s3.url)

    def at(key: str) -> str:
        return f"{prefix}/{key}"

    return tree, Store(
        lambda k: s3.read(at(k)),
        lambda k, data: s3.write(at(k), data),
        lambda k: s3.delete(at(k)),
        lambda: [k.removeprefix(f"{prefix}/") for k in s3.names() if k.startswith(f"{prefix}/")],
    )


@pytest.fixture(params=["folder_store", "s3_store"])
def shared(request: pytest.FixtureRequest) -> tuple[Any, Store]:
    return request.getfixturevalue(request.param)


def _use(tree: Any, url: str, **settings: str) -> Any:
    for key, value in {"url": url, **settings}.items():
        tree.run("dvc", "remote", "modify", "store", key, value, check=True)
    tree.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "remote", check=True)
    return tree


def _clone(tree: Any, path: Path) -> Any:
    tree.run("git", "clone", "-q", ".", str(path), check=True)
    return replace(tree, root=path)


def _key(tree: Any, path: str = FILE) -> str:
    stages = yaml.safe_load((tree.root / "dvc.lock").read_text())["stages"].values()
    md5 = next(out["md5"] for stage in stages for out in stage["outs"] if out["path"] == path)
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


def _refused(done: "subprocess.CompletedProcess[str]", *told: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for text in told:
        assert text in done.stderr, done.stderr


def _nothing_wrong_here(clone: Any, *, absent: str | None = FILE) -> None:
    """No file of the stage in the workspace, no object in the cache whose bytes are not those of its name."""
    assert absent is None or not (clone.root / absent).exists()
    for p in (clone.root / ".dvc/cache/files/md5").rglob("*"):
        if p.is_file():
            assert hashlib.md5(p.read_bytes()).hexdigest() == f"{p.parent.name}{p.name}"


def _same(clone: Any, tree: Any, path: str = FILE) -> None:
    assert (clone.root / path).read_bytes() == (tree.root / path).read_bytes()


def _damage(store: Store, key: str, how: str) -> None:
    if how == "missing":
        store.delete(key)
    else:
        data = store.read(key)
        store.write(key, data[: len(data) // 2] if how == "truncated" else _flip(data))


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_a02_shipped_config_verifies_and_holds_no_credentials() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    name = config["core"]["remote"]
    assert config[f"'remote \"{name}\"'"]["verify"] == "true"
    assert not [key for section in config.values() for key in section if key in CREDENTIALS]
    assert "://" not in config[f"'remote \"{name}\"'"]["url"]  # works without an account


def test_a02_remote_without_verify_is_refused(folder_store: tuple[Any, Store]) -> None:
    tree, store = folder_store
    tree.run("dvc", "remote", "modify", "store", "verify", "false", check=True)
    for command in ("push", "pull"):
        _refused(tree.run("twohop", command), "verify", "dvc remote modify store verify true")
    assert store.names() == []


def test_a02_plain_dvc_pull_refuses_a_flipped_byte(shared: tuple[Any, Store], tmp_path: Path) -> None:
    tree, store = shared
    tree.run("dvc", "push", STAGE, check=True)
    _damage(store, _key(tree), "altered")
    clone = _clone(tree, tmp_path / "clone")
    done = clone.run("dvc", "pull", STAGE)
    assert done.returncode != 0
    assert FILE in done.stderr
    _nothing_wrong_here(clone)


# --- push, clone, pull ------------------------------------------------------------------------------------------------


def test_pushed_study_is_whole_and_up_to_date_in_a_fresh_clone(s3_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, _ = s3_store
    assert "sent" in tree.run("twohop", "push", check=True).stdout
    assert " 0 sent" in tree.run("twohop", "push", check=True).stdout
    clone = _clone(tree, tmp_path / "clone")
    clone.run("twohop", "pull", check=True)
    assert clone.changed_stages() == set()
    assert clone.planned() == set()
    assert clone.run("twohop", "lineage", "check").returncode == 0


def test_activations_of_one_model_are_enough_for_its_probes(folder_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, _ = folder_store
    tree.run("twohop", "push", check=True)
    clone = _clone(tree, tmp_path / "clone")
    metrics = "results/train_probes/tiny-vlm/metrics.json"
    clone.run("twohop", "pull", STAGE, check=True)
    clone.snakemake(metrics)
    here = {str(p.parent.relative_to(clone.root / "results")) for p in (clone.root / "results").rglob("*.json")}
    assert here == {"extract_activations/tiny-vlm", "train_probes/tiny-vlm"}
    _same(clone, tree, metrics)


# --- objects that are bad or missing ----------------------------------------------------------------------------------


def test_bad_objects_are_named_and_healed_by_the_next_push(shared: tuple[Any, Store], tmp_path: Path) -> None:
    tree, store = shared
    tree.run("twohop", "push", "extract_activations", check=True)
    cases = {"tiny-vlm": "truncated", "tiny-llm": "altered", "tiny-control": "missing"}
    files = {model: FILE.replace("tiny-vlm", model) for model in cases}
    for model, how in cases.items():
        _damage(store, _key(tree, files[model]), how)
    clone = _clone(tree, tmp_path / "clone")
    refused = clone.run("twohop", "pull", "extract_activations")
    told = {"tiny-vlm": "cut off on the remote", "tiny-llm": "altered on the remote", "tiny-control": "missing on the"}
    _refused(refused, *(f"{file} (extract_activations@{m}): {told[m]}" for m, file in files.items()))
    (todo,) = (line for line in refused.stderr.splitlines() if "do:" in line)
    for model, file in files.items():
        assert todo.count(f"extract_activations@{model}") == 2  # after twohop push, after twohop pull
        _nothing_wrong_here(clone, absent=file)
        assert not (clone.root / file).with_name("lineage.json").exists()  # a stage comes whole or not at all
    pushed = tree.run("twohop", "push", "extract_activations", check=True).stdout
    assert "3 sent, 2 in the place of a bad one" in pushed
    clone.run("twohop", "pull", "extract_activations", check=True)
    for file in files.values():
        _same(clone, tree, file)


def test_killed_push_is_finished_by_the_next_one(s3_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, store = s3_store
    run = tree.start("twohop", "push", "--jobs", "1")
    end = time.monotonic() + 120
    while len(store.names()) < 3:
        assert time.monotonic() < end
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    half = len(store.names())
    tree.run("twohop", "push", check=True)
    assert half < len(store.names())
    clone = _clone(tree, tmp_path / "clone")
    clone.run("twohop", "pull", check=True)
    _same(clone, tree)


# --- no way to the remote ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["push", "pull"])
def test_wrong_credentials_are_told_with_the_setting(s3_store: tuple[Any, Store], tmp_path: Path, command: str) -> None:
    tree, store = s3_store
    tree.run("twohop", "push", STAGE, check=True)
    before = store.names()
    stranger = tree if command == "push" else _clone(tree, tmp_path / "clone")
    stranger = replace(stranger, extra={**tree.extra, "AWS_SECRET_ACCESS_KEY": "wrong"})
    told = ("no access", FILE, STAGE, "AWS_SECRET_ACCESS_KEY", "dvc remote modify --local store")
    _refused(stranger.run("twohop", command, STAGE), *told)
    assert store.names() == before
    _nothing_wrong_here(stranger, absent=FILE if command == "pull" else None)


@pytest.mark.parametrize("command", ["push", "pull"])
def test_unreachable_host_is_told_with_the_setting(s3_store: tuple[Any, Store], tmp_path: Path, command: str) -> None:
    tree, _ = s3_store
    tree.run("twohop", "push", STAGE, check=True)
    lost = tree if command == "push" else _clone(tree, tmp_path / "clone")
    lost.run(
        "dvc", "remote", "modify", "--local", "store", "endpointurl", f"http://127.0.0.1:{free_port()}", check=True
    )
    told = ("cannot be reached", FILE, STAGE, "dvc remote modify --local store endpointurl")
    _refused(lost.run("twohop", command, STAGE), *told)
    _nothing_wrong_here(lost, absent=FILE if command == "pull" else None)
    lost.run("dvc", "remote", "modify", "--local", "--unset", "store", "endpointurl", check=True)
    lost.run("twohop", command, STAGE, check=True)


@pytest.mark.parametrize("command", ["push", "pull"])
def test_absent_bucket_is_told_with_the_setting(s3_store: tuple[Any, Store], command: str) -> None:
    tree, _ = s3_store
    tree.run("dvc", "remote", "modify", "--local", "store", "url", "s3://no-such-bucket/x", check=True)
    shutil.rmtree(tree.root / ".dvc/cache" if command == "pull" else tree.root / "logs")
    _refused(tree.run("twohop", command, STAGE), "bucket does not exist", FILE, "dvc remote modify --local store url")


def test_absent_folder_is_told_with_the_setting(folder_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, _ = folder_store
    clone = _clone(tree, tmp_path / "clone")
    _refused(clone.run("twohop", "pull", STAGE), "there is no folder", FILE, "dvc remote modify --local store url")


# --- what S3 tells of an object's bytes -------------------------------------------------------------------------------


def test_checksum_of_an_object_sent_in_parts(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is compared by the server's ETag, so that a push need not read it back."""
    part = 5 << 20
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: part)
    file = tmp_path / "file"
    file.write_bytes(hashlib.shake_256(b"x").digest(2 * part + 17))
    code = (
        "import sys, s3fs\n"
        f"s3fs.S3FileSystem(endpoint_url={s3.url!r}).put_file({str(file)!r}, 'store/parts', chunksize={part})\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **s3.env}, check=True)
    told = s3.client.head_object(Bucket=s3.bucket, Key="parts")["ETag"].strip('"')
    assert told.endswith("-3")
    assert _multipart_etag(file) == told


# --- a clone's own objects --------------------------------------------------------------------------------------------


def _spoil(tree: Any) -> Path:
    """Alter an object of the cache that DVC trusts unread."""
    cached = tree.root / ".dvc/cache" / _key(tree)
    data = _flip(cached.read_bytes())
    cached.chmod(0o644)
    cached.write_bytes(data)
    cached.chmod(0o444)
    return cached


def test_a03_spoilt_object_is_made_again_from_the_workspace_before_a_push(folder_store: tuple[Any, Store]) -> None:
    tree, store = folder_store
    _spoil(tree)
    tree.run("twohop", "push", STAGE, check=True)
    assert store.read(_key(tree)) == (tree.root / FILE).read_bytes()
    _nothing_wrong_here(tree, absent=None)


def test_a03_spoilt_object_is_never_pushed(folder_store: tuple[Any, Store]) -> None:
    tree, store = folder_store
    shutil.copyfile(_spoil(tree), tree.root / FILE)
    _refused(tree.run("twohop", "push", STAGE), FILE, STAGE, "spoilt here", "missing on the remote", "twohop pull")
    assert _key(tree) not in store.names()
    _nothing_wrong_here(tree, absent=None)


def test_a03_spoilt_object_is_fetched_again_by_a_pull(folder_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, _ = folder_store
    tree.run("twohop", "push", STAGE, check=True)
    clone = _clone(tree, tmp_path / "clone")
    clone.run("dvc", "fetch", STAGE, check=True)
    _spoil(clone)
    clone.run("twohop", "pull", STAGE, check=True)
    _same(clone, tree)
    _nothing_wrong_here(clone, absent=None)


def test_a01_artifact_that_is_not_what_its_record_says_is_refused(
    folder_store: tuple[Any, Store], tmp_path: Path
) -> None:
    tree, _ = folder_store
    (tree.root / FILE).write_bytes(_flip((tree.root / FILE).read_bytes()))
    tree.run("dvc", "commit", "-f", STAGE, check=True)
    tree.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "bad", check=True)
    tree.run("twohop", "push", STAGE, check=True)
    clone = _clone(tree, tmp_path / "clone")
    _refused(clone.run("twohop", "pull", STAGE), FILE, "not the one in its lineage record")
    _nothing_wrong_here(clone)


def test_own_edited_files_are_not_overwritten(folder_store: tuple[Any, Store]) -> None:
    tree, _ = folder_store
    tree.run("twohop", "push", STAGE, check=True)
    (tree.root / FILE).write_bytes(b"mine")
    _refused(tree.run("twohop", "pull", STAGE), FILE, "--force")
    assert (tree.root / FILE).read_bytes() == b"mine"
    tree.run("twohop", "pull", STAGE, "--force", check=True)


def test_unknown_stage_is_told_with_the_nearest(folder_store: tuple[Any, Store]) -> None:
    tree, _ = folder_store
    _refused(tree.run("twohop", "pull", "extract_activation@tiny-vlm"), f"did you mean {STAGE}")


def test_missing_plugin_is_told_with_what_brings_it(folder_store: tuple[Any, Store]) -> None:
    tree, _ = folder_store
    tree.run("dvc", "remote", "modify", "store", "url", "s3://bucket/path", check=True)
    code = "import sys; sys.modules['dvc_s3'] = None; from twohop.cli import main; sys.exit(main(['push']))"
    _refused(tree.run("python", "-c", code), "dvc-s3", "pip install -e '.[s3]'")


def test_other_folder_is_refused(folder_store: tuple[Any, Store]) -> None:
    tree, _ = folder_store
    below = replace(tree, root=tree.root / "docs", extra={"PYTHONPATH": str(tree.root / "src")})
    _refused(below.run("twohop", "pull"), f"cd {tree.root}")


# --- other transports -------------------------------------------------------------------------------------------------


def test_http_remote_is_pulled_from_and_never_pushed_to(folder_store: tuple[Any, Store], tmp_path: Path) -> None:
    tree, store = folder_store
    tree.run("twohop", "push", STAGE, check=True)
    with http_server(tmp_path / "store") as url:
        _use(tree, url)
        clone = _clone(tree, tmp_path / "clone")
        clone.run("twohop", "pull", STAGE, check=True)
        _same(clone, tree)
        _refused(tree.run("twohop", "push", STAGE), "can only be read", "twohop push --remote")
        _damage(store, _key(tree), "altered")
        other = _clone(tree, tmp_path / "other")
        _refused(other.run("twohop", "pull", STAGE), FILE, STAGE, "altered", "twohop push")
        _nothing_wrong_here(other)
        _damage(store, _key(tree), "missing")
        _refused(other.run("twohop", "pull", STAGE), FILE, "missing on the remote")
    _refused(other.run("twohop", "pull", STAGE), FILE, "cannot be reached", "dvc remote modify --local store url")


def test_ssh_remote(finished: Any, tmp_path: Path) -> None:
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed")
    store = tmp_path / "store"
    store.mkdir()
    with ssh_server(tmp_path) as (port, key):
        tree = _use(finished, f"ssh://u@127.0.0.1:{port}{store}", keyfile=str(key))
        tree.run("twohop", "push", STAGE, check=True)
        clone = _clone(tree, tmp_path / "clone")
        clone.run("twohop", "pull", STAGE, check=True)
        _same(clone, tree)
        held = store / _key(tree)
        good = held.read_bytes()
        for bad, told, words in ((good[:100], "cut off", ()), (_flip(good), "altered", ("--read-back",))):
            held.chmod(0o644)
            held.write_bytes(bad)
            other = _clone(tree, tmp_path / told)
            _refused(other.run("twohop", "pull", STAGE), FILE, STAGE, told, f"twohop push {' '.join((*words, STAGE))}")
            _nothing_wrong_here(other)
            tree.run("twohop", "push", *words, STAGE, check=True)
            assert held.read_bytes() == good
        other.run("dvc", "remote", "modify", "--local", "store", "keyfile", str(tmp_path / "stranger"), check=True)
        _refused(other.run("twohop", "pull", STAGE), FILE, "no access", "keyfile")
