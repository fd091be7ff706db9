"""Layers come out the same wherever and whenever they are made."""

from __future__ import annotations

import tarfile
from pathlib import Path

from onprem_mlops.artifacts.blobs import sha256_of
from onprem_mlops.artifacts.layers import Layer, tar_of_folder, write_layer


def test_the_same_content_gives_the_same_layer(tmp_path: Path) -> None:
    digests = []
    for number in (1, 2):
        source = tmp_path / f"source{number}"
        source.write_text("content")

        def fill(layer: Layer, source: Path = source) -> None:
            layer.folder("/tmp", 0o1777)
            layer.folder("/status", owner=999)
            layer.file("/usr/bin/tool", source, 0o755)
            layer.text("/etc/passwd", "root:x:0:0::/:\n", 0o644)
            layer.link("/usr/bin/other", "tool")

        write_layer(tmp_path / f"{number}.tar", fill)
        digests.append(sha256_of(tmp_path / f"{number}.tar"))
    assert digests[0] == digests[1]
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert [member.name for member in tar] == [
            "tmp",
            "status",
            "usr",
            "usr/bin",
            "usr/bin/tool",
            "etc",
            "etc/passwd",
            "usr/bin/other",
        ]
        assert tar.getmember("status").uid == 999
        assert tar.getmember("tmp").mode == 0o1777


def test_a_packed_folder_unpacks_into_a_layer(tmp_path: Path) -> None:
    inner = tmp_path / "etc" / "service" / "felix"
    inner.mkdir(parents=True)
    (inner / "run").write_text("#!/bin/sh\n")
    (inner / "note").write_text("text")
    tar_of_folder(tmp_path / "etc", tmp_path / "etc.tar", ["run"])
    write_layer(tmp_path / "layer.tar", lambda layer: layer.unpacked("/etc", tmp_path / "etc.tar"))
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getmember("etc/service/felix/run").mode == 0o755
        assert tar.getmember("etc/service/felix/note").mode == 0o644
        assert tar.getmember("etc/service").isdir()
