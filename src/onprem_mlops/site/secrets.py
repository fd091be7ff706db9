"""The site's secrets: one file in age format, readable by every recipient and by the ``age`` tool.

The plain text inside is YAML, ``role: {name: value}``. The key of the site's authority lies in it as well.
"""

from __future__ import annotations

import base64
import io
import os
import secrets as random
import shlex
import shutil
import signal
import string
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pyrage
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.locks import locked
from onprem_mlops.site.document import Document, SiteError, read_text
from onprem_mlops.site.hidden import Hidden
from onprem_mlops.site.model import Site
from onprem_mlops.site.role import Secret
from onprem_mlops.site.safe_file import private_folder, read_private

Values = dict[str, dict[str, str]]
"""Secrets by role and name."""

_PASSWORD_LETTERS = string.ascii_letters + string.digits
_EDITORS_FOLDER = "onprem-mlops-edit-"


@dataclass(frozen=True)
class Recipient:
    """Who can read the secrets: a public key (``age1…`` or ``ssh-ed25519 …``) and whose it is."""

    key: str
    name: str = ""

    def parsed(self) -> pyrage.x25519.Recipient | pyrage.ssh.Recipient:
        """The key for encryption. RequestError if it is none."""
        kind = pyrage.ssh if self.key.startswith("ssh-") else pyrage.x25519
        try:
            return kind.Recipient.from_str(self.key)
        except pyrage.RecipientError:
            raise RequestError(
                f'"{self.key[:40]}" is not a recipient',
                "Give the public key that age-keygen or ./mlops init shows (age1…), or an ssh-ed25519 public key.",
            ) from None


def identity_file(site: Site) -> Path:
    """The file with the private key that opens the secrets; outside the repository.

    ``$MLOPS_IDENTITY``, else for a lab its state folder, else ``~/.config/onprem-mlops/identity.txt``.
    """
    if explicit := identity_from_environment():
        return explicit
    return site.state / "identity.txt" if site.lab else default_identity_file()


def identity_from_environment() -> Path | None:
    """The identity file that ``MLOPS_IDENTITY`` names, if it is set."""
    explicit = os.environ.get("MLOPS_IDENTITY")
    return Path(explicit).expanduser() if explicit else None


def default_identity_file() -> Path:
    """Where a person's identity lies unless ``MLOPS_IDENTITY`` says otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "onprem-mlops" / "identity.txt"


def ensure_identity(path: Path) -> Recipient:
    """The public half of the identity in ``path``, which is made if it is absent, as age-keygen would."""
    if not path.exists():
        private_folder(path.parent)
        identity = pyrage.x25519.Identity.generate()
        made = datetime.now(UTC).isoformat(timespec="seconds")
        text = f"# created: {made}\n# public key: {identity.to_public()}\n{identity}\n"
        write_atomically(path, text.encode())
    for identity in _identities(path):
        if isinstance(identity, pyrage.x25519.Identity):
            return Recipient(str(identity.to_public()))
    return _recipient_of_ssh_key(path)


def _recipient_of_ssh_key(path: Path) -> Recipient:
    public = path.with_name(path.name + ".pub")
    if not public.is_file():
        raise RequestError(f"{path} is an SSH key and its public half {public} is missing", "Put it there.")
    return Recipient(" ".join(public.read_text().split()[:2]))


def _identities(path: Path) -> list[pyrage.x25519.Identity | pyrage.ssh.Identity]:
    content = read_private(path, "identity file")
    try:
        if content.startswith(b"-----BEGIN"):
            return [pyrage.ssh.Identity.from_buffer(content)]
        lines = (line.strip() for line in content.decode().splitlines())
        found = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except (pyrage.IdentityError, UnicodeDecodeError):
        found = []
    if not found:
        raise RequestError(
            f"{path} holds no age identity", "It should have a line AGE-SECRET-KEY-1…, as age-keygen writes it."
        )
    return list(found)


def generate_value(kind: str) -> str:
    """A fresh secret of a kind that roles may declare."""
    match kind:
        case "key32":
            return base64.b64encode(random.token_bytes(32)).decode()
        case "token":
            return random.token_hex(16)
    return "".join(random.choice(_PASSWORD_LETTERS) for _ in range(24))


def declared(site: Site) -> dict[tuple[str, str], Secret]:
    """The secrets that roles which are on declare, by role and name."""
    return {
        (role, secret.name): secret
        for role, settings in site.role_settings.items()
        for secret in settings.secrets(site)
    }


class Secrets:
    """The secrets of one site. Each change is encrypted anew to all recipients and takes effect at once or never."""

    def __init__(self, folder: Path, identity: Path, lock: Path) -> None:
        self.file = folder / "secrets.yaml.age"
        self.recipients_file = folder / "recipients.txt"
        self.identity = identity
        self._lock = lock
        self._cached: Values | None = None

    @classmethod
    def of(cls, site: Site) -> Secrets:
        """The secrets of a site: beside its ``site.yaml``, for a lab in its state folder."""
        return cls(material_folder(site), identity_file(site), site.state / "secrets.lock")

    # Reading

    def get(self, role: str, name: str) -> Hidden:
        """One secret. RequestError if there is none."""
        try:
            return Hidden(self._values()[role][name])
        except KeyError:
            raise RequestError(
                f"{self.file} has no secret {name} of role {role}",
                "A deploy generates what roles declare; set others with ./mlops secrets edit.",
            ) from None

    def has(self, role: str, name: str) -> bool:
        """Whether there is such a secret."""
        return name in self._values().get(role, {})

    def show(self) -> dict[str, dict[str, Hidden]]:
        """All secrets, hidden, by role and name."""
        return {
            role: {name: Hidden(value) for name, value in sorted(named.items())}
            for role, named in sorted(self._values().items())
        }

    def lacking(self, site: Site) -> dict[tuple[str, str], Secret]:
        """Secrets that roles declare and that are not there yet."""
        return {at: secret for at, secret in declared(site).items() if not self.has(*at)}

    # Changing

    def create(self, recipients: list[Recipient]) -> None:
        """Make an empty secrets file. RequestError if there is one."""
        if self.file.exists():
            raise RequestError(f"{self.file} exists already", "Nothing was changed.")
        self._write_recipients(recipients)
        self._write({}, recipients)

    def generate(self, site: Site) -> list[tuple[str, str]]:
        """Make what is lacking. Gives role and name of what was made; writes nothing if nothing lacks."""
        if not self.lacking(site):
            return []
        with self._changing() as values:
            lacking = self.lacking(site)
            for (role, name), secret in lacking.items():
                values.setdefault(role, {})[name] = generate_value(secret.kind)
        return list(lacking)

    def set(self, role: str, name: str, value: Hidden) -> None:
        """Give a secret a value."""
        with self._changing() as values:
            values.setdefault(role, {})[name] = value.reveal()

    def rotate(self, site: Site, role: str, name: str) -> None:
        """Give a declared secret a fresh value; the next deploy lays it down. RequestError if it must not change."""
        secret = declared(site).get((role, name))
        if secret is None:
            known = ", ".join(" ".join(at) for at in declared(site)) or "none"
            raise RequestError(f"no role that is on declares a secret {role} {name}", f"Declared: {known}.")
        if not secret.rotatable:
            raise RequestError(
                f"secret {name} of role {role} cannot be replaced just so: {secret.why or 'data depends on it'}",
                f"See roles/{role}/README.md for how to change it.",
            )
        if secret.given:
            raise RequestError(
                f"secret {name} of role {role} is not this site's to make: {secret.why or 'another system gave it'}",
                "Change it there first; then write it here: ./mlops secrets edit.",
            )
        self.set(role, name, Hidden(generate_value(secret.kind)))

    def edit(
        self,
        run_editor: Callable[[Path], None],
        try_again: Callable[[SiteError], bool],
        *,
        kept: Container[tuple[str, str]] = (),
    ) -> bool:
        """Let a person edit the plain text. Gives whether anything changed.

        ``run_editor`` opens the file and returns when the person is done. If the result is wrong, ``try_again`` is
        asked; if it says no, the SiteError comes out and nothing was changed. RequestError if one of ``kept`` (role and
        name) is gone or has another value.
        """
        self._cached = None
        before = self._values()
        # Not locked while a person thinks: a deploy beside it goes on, and what it generates is kept.
        with _plain_file(_dump(before)) as plain:
            edited = _edited(plain, run_editor, try_again)
        changes = {at: _at(edited, at) for at in _names(before) | _names(edited) if _at(before, at) != _at(edited, at)}
        if lost := [" ".join(at) for at in sorted(changes) if at in kept and _at(before, at) is not None]:
            raise RequestError(
                f"data or certificates depend on {', '.join(lost)}, which would be lost. Nothing was changed",
                "Leave them as they are. ./mlops certs renew-authority replaces the authority.",
            )
        if changes:
            with self._changing() as values:
                for (role, name), value in changes.items():
                    named = values.setdefault(role, {})
                    named.pop(name, None)
                    if value is not None:
                        named[name] = value
        return bool(changes)

    # Recipients

    @property
    def recipients(self) -> list[Recipient]:
        """Who can read the secrets, in the order of recipients.txt."""
        try:
            lines = self.recipients_file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise RequestError(
                f"{self.recipients_file} does not exist", "It lists the public keys that may read the secrets."
            ) from None
        found, name = [], ""
        for line in (line.strip() for line in lines):
            if line.startswith("#"):
                name = line.lstrip("# ")
            elif line:
                found.append(Recipient(line, name))
                name = ""
        return found

    def add_recipient(self, recipient: Recipient) -> None:
        """Let another key read the secrets. RequestError if it is no key or one of them already."""
        recipient.parsed()
        if not recipient.name.isprintable():
            raise RequestError("a recipient's name is one line of text", "Nothing was changed.")
        for known in self.recipients:
            if recipient.key == known.key or (recipient.name and recipient.name == known.name):
                same = recipient.key if recipient.key == known.key else recipient.name
                raise RequestError(f"{same} is a recipient already", "Nothing was changed.")
        self._replace_recipients([*self.recipients, recipient])

    def remove_recipient(self, key_or_name: str) -> Recipient:
        """Encrypt without a recipient from now on. What they have read and the history of git stay readable to them."""
        going = [known for known in self.recipients if key_or_name in (known.key, known.name)]
        if len(going) != 1:
            names = ", ".join(known.name or known.key for known in self.recipients)
            raise RequestError(f'"{key_or_name}" is {len(going)} recipients, not one', f"Recipients: {names}.")
        self._replace_recipients([known for known in self.recipients if known != going[0]])
        return going[0]

    def _replace_recipients(self, recipients: list[Recipient]) -> None:
        with locked(self._lock):
            self._cached = None
            # The list comes last: whoever is interrupted in between repeats the command and it completes.
            self._write(self._values(), recipients)
            self._write_recipients(recipients)

    # The file

    @contextmanager
    def _changing(self) -> Iterator[Values]:
        """The present values, to be changed in place; written if the block ends well and they differ."""
        with locked(self._lock):
            self._cached = None
            before = self._values()
            values = {role: dict(named) for role, named in before.items()}
            yield values
            if values != before:
                self._write(values, self.recipients)

    def _values(self) -> Values:
        if self._cached is None:
            try:
                encrypted = self.file.read_bytes()
            except FileNotFoundError:
                raise RequestError(
                    f"{self.file} does not exist", "A lab makes it with ./mlops lab up, ./mlops init for other sites."
                ) from None
            self._cached = _parse(self._decrypt(encrypted), str(self.file))
        return self._cached

    def _decrypt(self, encrypted: bytes) -> str:
        if not self.identity.exists():
            raise RequestError(
                f"no identity file {self.identity}, so the secrets cannot be read",
                "Restore it from where you keep it, or set MLOPS_IDENTITY; or let a recipient add your public key.",
            )
        try:
            plain: bytes = pyrage.decrypt(encrypted, _identities(self.identity))
            return plain.decode()
        except pyrage.DecryptError:
            raise RequestError(
                f"{self.file} cannot be opened with {self.identity}",
                "Either you are no recipient (ask one for ./mlops secrets add-recipient), or the file is damaged "
                "(take it from git).",
            ) from None

    def _write(self, values: Values, recipients: list[Recipient]) -> None:
        if not recipients:
            raise RequestError("secrets without a recipient could never be read again", "Keep at least one.")
        encrypted = pyrage.encrypt(_dump(values).encode(), [one.parsed() for one in recipients])
        try:
            readable = pyrage.decrypt(encrypted, _identities(self.identity))
        except pyrage.DecryptError:
            raise RequestError(
                f"with these recipients you could not read the secrets yourself ({self.identity})",
                "Keep your own public key among the recipients. Nothing was changed.",
            ) from None
        if _parse(readable.decode(), str(self.file)) != values:
            raise RequestError("a secret did not survive being written", "Please report this. Nothing was changed.")
        write_atomically(self.file, encrypted)
        self._cached = values

    def _write_recipients(self, recipients: list[Recipient]) -> None:
        lines = ["# Public keys that may read secrets.yaml.age, each below the name of its owner."]
        for one in recipients:
            lines += ["", f"# {one.name or 'unnamed'}", one.key]
        write_atomically(self.recipients_file, ("\n".join(lines) + "\n").encode(), 0o644)


def material_folder(site: Site) -> Path:
    """Where a site's secrets, recipients and authority lie: in git beside site.yaml, for a lab in its state folder."""
    return site.state if site.lab else site.folder


def run_editor(file: Path) -> None:
    """Open ``file`` in ``$VISUAL`` or ``$EDITOR`` (else vi) and wait. RequestError if that fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        subprocess.run([*shlex.split(editor), str(file)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RequestError(f"the editor {editor} failed: {error}", "Set EDITOR. Nothing was changed.") from None


def _edited(plain: Path, run_editor: Callable[[Path], None], try_again: Callable[[SiteError], bool]) -> Values:
    """What a person made of the plain text; SiteError if it is wrong and they give up."""
    while True:
        run_editor(plain)
        try:
            return _parse(plain.read_text(encoding="utf-8"), "secrets.yaml")
        except SiteError as error:
            if not try_again(error):
                raise
        except (OSError, UnicodeDecodeError):
            raise RequestError(
                "what the editor left cannot be read", "It must be text in UTF-8 in the same file. Nothing was changed."
            ) from None


def _names(values: Values) -> set[tuple[str, str]]:
    return {(role, name) for role, named in values.items() for name in named}


def _at(values: Values, at: tuple[str, str]) -> str | None:
    return values.get(at[0], {}).get(at[1])


def _dump(values: Values) -> str:
    plain = {
        role: {name: LiteralScalarString(value) if "\n" in value else value for name, value in sorted(named.items())}
        for role, named in sorted(values.items())
    }
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.dump(plain, stream)
    return "# Secrets by role and name.\n" + stream.getvalue()


def _parse(text: str, path: str) -> Values:
    """The values in the plain text. SiteError (which shows no value) if it is not ``role: {name: text}``."""
    document = read_text(text, path)
    values: Values = {}
    found = document.values if document.values is not None else {}
    if not isinstance(found, dict):
        document.report((), "secrets are `role:` with `name: value` under each; write them so")
        found = {}
    for role, named in found.items():
        if isinstance(named, dict):
            values[role] = {name: _text(document, role, name, value) for name, value in named.items()}
        else:
            document.report((role,), f"`{role}` is not a mapping; write `name: value` under it")
    document.refuse_if_wrong()
    return values


def _text(document: Document, role: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        document.report((role, name), f"`{name}` is not text; put its value in quotes")
        return ""
    return value


@contextmanager
def _plain_file(text: str) -> Iterator[Path]:
    """A file with a plain text, in memory where the system has such a place, gone when the block ends, however."""
    base = _memory_folder()
    _remove_left_over(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{_EDITORS_FOLDER}{os.getpid()}-", dir=base))
    try:
        with _signals_raise():
            file = folder / "secrets.yaml"
            file.touch(mode=0o600)
            file.write_text(text, encoding="utf-8")
            yield file
    finally:
        shutil.rmtree(folder)


def _memory_folder() -> Path:
    for name in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108 - a folder of mode 0700 is made in it
        if name and Path(name).is_dir() and os.access(name, os.W_OK):
            return Path(name)
    return Path(tempfile.gettempdir())


def _remove_left_over(base: Path) -> None:
    """Remove what an edit that was killed with SIGKILL could not."""
    for folder in base.glob(f"{_EDITORS_FOLDER}*"):
        pid = folder.name.removeprefix(_EDITORS_FOLDER).split("-")[0]
        if folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let a hang-up or a termination unwind the stack, so that the plain text is removed."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {}
    with suppress(ValueError):  # not the main thread: signals go elsewhere
        before = {number: signal.signal(number, stop) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
