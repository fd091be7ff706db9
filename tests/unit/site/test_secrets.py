"""Secrets: who can read them, what the age tool makes of them, what a kill leaves, what is never written."""

from __future__ import annotations

import base64
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.site import Hidden, Recipient, Secrets, Site, SiteError
from onprem_mlops.site.material import create_material
from onprem_mlops.site.secrets import default_identity_file, ensure_identity, run_editor


@pytest.fixture
def own() -> Recipient:
    return Recipient(ensure_identity(default_identity_file()).key, "me")


@pytest.fixture
def secrets(site: Site, own: Recipient) -> Secrets:
    create_material(site, [own])
    return Secrets.of(site)


def reread(secrets: Secrets) -> Secrets:
    """The same secrets as another process sees them."""
    return Secrets(secrets.file.parent, secrets.identity, secrets.file.parent / "lock")


def test_what_roles_declare_is_generated_once(site: Site, secrets: Secrets) -> None:
    first = {name: hidden.reveal() for name, hidden in secrets.show()["kubernetes"].items()}
    assert len(base64.b64decode(first["encryption_key"])) == 32
    assert len(first["admin_password"]) == 24
    assert len(bytes.fromhex(first["join"])) == 16
    before = secrets.file.read_bytes()
    assert secrets.generate(site) == []
    assert secrets.file.read_bytes() == before
    assert secrets.get("storage", "root").reveal() not in str(secrets.show())


def test_nothing_is_in_the_clear(secrets: Secrets) -> None:
    content = secrets.file.read_bytes()
    assert content.startswith(b"age-encryption.org/v1\n")
    assert secrets.get("storage", "root").reveal().encode() not in content
    assert secrets.file.stat().st_mode & 0o777 == 0o600


def test_a_missing_secret_says_what_to_do(secrets: Secrets) -> None:
    with pytest.raises(RequestError, match="no secret nothing of role storage"):
        secrets.get("storage", "nothing")


def test_rotation(site: Site, secrets: Secrets) -> None:
    before = secrets.get("storage", "root")
    secrets.rotate(site, "storage", "root")
    assert reread(secrets).get("storage", "root") != before
    with pytest.raises(RequestError, match="every Secret in etcd"):
        secrets.rotate(site, "kubernetes", "encryption_key")
    with pytest.raises(RequestError, match="no role that is on declares"):
        secrets.rotate(site, "storage", "nothing")


def test_a_second_recipient_reads_until_removed(secrets: Secrets, tmp_path: Path) -> None:
    other = pyrage.x25519.Identity.generate()
    secrets.add_recipient(Recipient(str(other.to_public()), "Ada"))
    assert [one.name for one in secrets.recipients] == ["me", "Ada"]
    assert b"storage" in pyrage.decrypt(secrets.file.read_bytes(), [other])
    with pytest.raises(RequestError, match="already"):
        secrets.add_recipient(Recipient(str(other.to_public()), "Ada again"))
    assert secrets.remove_recipient("Ada").name == "Ada"
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(secrets.file.read_bytes(), [other])
    assert reread(secrets).has("storage", "root")


def test_nobody_locks_themselves_out(secrets: Secrets) -> None:
    other = pyrage.x25519.Identity.generate()
    secrets.add_recipient(Recipient(str(other.to_public()), "Ada"))
    before = secrets.file.read_bytes()
    with pytest.raises(RequestError, match="could not read the secrets yourself"):
        secrets.remove_recipient("me")
    with pytest.raises(RequestError, match="is 0 recipients"):
        secrets.remove_recipient("Grace")
    assert secrets.file.read_bytes() == before
    assert len(secrets.recipients) == 2


@pytest.mark.parametrize("key", ["", "age1nonsense", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1XYZ"])
def test_what_is_no_recipient(key: str, secrets: Secrets) -> None:
    with pytest.raises(RequestError, match="not a recipient"):
        secrets.add_recipient(Recipient(key, "x"))


def test_an_ssh_key_is_a_recipient_too(secrets: Secrets, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    secrets.add_recipient(Recipient(" ".join((tmp_path / "key.pub").read_text().split()[:2]), "Grace"))
    with_ssh = Secrets(secrets.file.parent, key, tmp_path / "lock")
    assert with_ssh.get("storage", "root") == secrets.get("storage", "root")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_an_identity_that_others_read_is_refused(mode: int, secrets: Secrets) -> None:
    secrets.identity.chmod(mode)
    with pytest.raises(RequestError, match=f"mode {mode:o}, so others can read it"):
        reread(secrets).show()


def test_without_the_identity(secrets: Secrets) -> None:
    secrets.identity.write_text("AGE-SECRET-KEY-1NONSENSE\n")
    with pytest.raises(RequestError, match="holds no age identity"):
        reread(secrets).show()
    secrets.identity.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    with pytest.raises(RequestError, match="cannot be opened with"):
        reread(secrets).show()
    secrets.identity.unlink()
    with pytest.raises(RequestError, match="no identity file"):
        reread(secrets).show()


@pytest.mark.parametrize("damage", [b"", b"not age", b"age-encryption.org/v1\n-> X25519 x\n"])
def test_a_damaged_file(damage: bytes, secrets: Secrets) -> None:
    secrets.file.write_bytes(damage)
    with pytest.raises(RequestError, match="cannot be opened"):
        reread(secrets).show()


@pytest.mark.parametrize(
    "value", ["-----BEGIN X-----\nabc\n-----END X-----\n", 'a: "b" #c', "yes", "0123", " x ", "ü…"]
)
def test_every_value_survives(value: str, secrets: Secrets) -> None:
    secrets.set("storage", "odd", Hidden(value))
    assert reread(secrets).get("storage", "odd").reveal() == value


# The age tool


needs_age = pytest.mark.skipif(not shutil.which("age"), reason="there is no age tool; `./mlops test` sees to it")


@needs_age
def test_the_age_tool_reads_ours(secrets: Secrets) -> None:
    command = ["age", "-d", "-i", str(secrets.identity), str(secrets.file)]
    plain = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"root: {secrets.get('storage', 'root').reveal()}" in plain


@needs_age
def test_ours_reads_what_the_age_tool_made(secrets: Secrets, tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("storage:\n  root: from the tool\n")
    command = ["age", "-e", "-R", str(secrets.recipients_file), "-o", str(secrets.file), str(plain)]
    secrets.file.unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert reread(secrets).get("storage", "root").reveal() == "from the tool"


# Editing


def writes(text: str) -> Callable[[Path], None]:
    def editor(file: Path) -> None:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        file.write_text(text)

    return editor


def never(error: SiteError) -> bool:
    return False


def left_over() -> list[Path]:
    return [*Path("/dev/shm").glob(f"onprem-mlops-edit-{os.getpid()}-*")]


def test_edit(secrets: Secrets) -> None:
    assert secrets.edit(writes("storage:\n  root: mine\n"), never)
    assert reread(secrets).get("storage", "root").reveal() == "mine"
    assert not secrets.edit(lambda file: None, never)
    assert left_over() == []


@pytest.mark.parametrize("text", ["", "storage:\n  root: another\n"])
def test_an_edit_may_not_lose_what_data_depends_on(text: str, secrets: Secrets) -> None:
    secrets.set("storage", "root", Hidden("first"))
    with pytest.raises(RequestError, match="data or certificates depend on storage root, which would be lost"):
        secrets.edit(writes(text), never, kept={("storage", "root")})
    assert reread(secrets).get("storage", "root").reveal() == "first"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("storage:\n  root: 12\n", "secrets.yaml:2:9: `root` is not text; put its value in quotes"),
        ("storage:\n  root:\n", "secrets.yaml:2:3: `root` is not text; put its value in quotes"),
        ("storage: hunter2\n", "secrets.yaml:1:10: `storage` is not a mapping; write `name: value` under it"),
        ("- hunter2\n", "secrets.yaml:1:1: secrets are `role:` with `name: value` under each; write them so"),
        (
            "storage:\n  root: a\n  root: hunter2\n",
            "secrets.yaml:3:3: `root` is here a second time (first on line 2); keep one of them",
        ),
    ],
)
def test_a_wrong_edit_changes_nothing_and_shows_nothing(text: str, message: str, secrets: Secrets) -> None:
    before = secrets.file.read_bytes()
    with pytest.raises(SiteError) as caught:
        secrets.edit(writes(text), never)
    assert caught.value.message == message
    assert "hunter2" not in str(caught.value)
    assert secrets.file.read_bytes() == before
    assert left_over() == []


def test_a_wrong_edit_can_be_mended(secrets: Secrets) -> None:
    texts = iter(["storage: [", "storage:\n  root: mended\n"])
    assert secrets.edit(lambda file: writes(next(texts))(file), lambda error: True)
    assert secrets.get("storage", "root").reveal() == "mended"


def test_what_is_generated_during_an_edit_is_kept(secrets: Secrets) -> None:
    def slow(file: Path) -> None:
        reread(secrets).set("storage", "meanwhile", Hidden("kept"))
        file.write_text(file.read_text().replace("  join:", "  joined:"))

    joined = secrets.get("kubernetes", "join")
    assert secrets.edit(slow, never)
    assert reread(secrets).get("storage", "meanwhile").reveal() == "kept"
    assert reread(secrets).get("kubernetes", "joined") == joined
    assert not reread(secrets).has("kubernetes", "join")


def test_an_editor_that_fails(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "false --wait")
    with pytest.raises(RequestError, match="the editor false --wait failed"):
        secrets.edit(run_editor, never)
    assert left_over() == []


def test_a_terminated_edit_leaves_no_plain_text(secrets: Secrets) -> None:
    def hang(file: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(SystemExit):
        secrets.edit(hang, never)
    assert left_over() == []


def test_what_a_killed_edit_left_is_removed_by_the_next(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    process = subprocess.run(command, capture_output=True, check=True)
    left = Path("/dev/shm") / f"onprem-mlops-edit-{int(process.stdout)}-x"
    left.mkdir()
    (left / "secrets.yaml").write_text("hunter2")
    secrets.edit(lambda file: None, never)
    assert not left.exists()


# Kills and two at once


def _set_forever(folder: Path, identity: Path, who: str) -> None:
    secrets = Secrets(folder, identity, folder / "lock")
    for number in range(10_000):
        secrets.set("storage", who, Hidden(f"{who}{number}"))


@pytest.mark.parametrize("after", [0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.3])
def test_a_kill_leaves_the_old_or_the_new(after: float, secrets: Secrets) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_set_forever, args=(secrets.file.parent, secrets.identity, "killed"))
    process.start()
    time.sleep(after)
    process.kill()
    process.join()
    assert reread(secrets).has("storage", "root")
    reread(secrets).set("storage", "after", Hidden("fine"))
    assert reread(secrets).get("storage", "after").reveal() == "fine"


def _set_twenty(folder: Path, identity: Path, who: str) -> None:
    secrets = Secrets(folder, identity, folder / "lock")
    for number in range(20):
        secrets.set("storage", f"{who}{number}", Hidden("x"))


def test_two_at_once_lose_nothing(secrets: Secrets) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_set_twenty, args=(secrets.file.parent, secrets.identity, who)) for who in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(reread(secrets).show()["storage"]) == 41
