"""Every wrong site file gives exactly the messages that stand in its first lines, at their places, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from onprem_mlops.roles import Role
from onprem_mlops.site import SiteError, load_site

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
EXPECT = "# expect: "


def test_there_are_enough() -> None:
    assert len(BAD) >= 100


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad_site_file(file: Path, tmp_path: Path, roles: Mapping[str, Role], monkeypatch: pytest.MonkeyPatch) -> None:
    text = file.read_text(encoding="utf-8")
    expected = [f"site.yaml:{line.removeprefix(EXPECT)}" for line in text.splitlines() if line.startswith(EXPECT)]
    (tmp_path / "site.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SiteError) as caught:
        load_site(Path(), roles)
    assert caught.value.message.splitlines() == expected
    assert caught.value.exit_code == 2
