"""Files of a TLS connection to etcd that change, go and come."""

from __future__ import annotations

from pathlib import Path

import holdfast
import pytest
from holdfast.tls import authorization
from holdfast_cluster.membership.etcd import EtcdTLS

from tests.certs import Authority


def test_changed_files_are_taken_over_and_wrong_ones_are_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("client")
    tls = EtcdTLS(authority.file, cert, key)
    assert tls.version() == tls.version() == 1
    good = tls.credentials()
    for file in (cert, key, authority.file):
        kept = file.read_bytes()
        file.unlink()
        assert tls.version() == 1
        assert tls.credentials() is good
        file.write_text("garbage")
        assert tls.version() == 1
        assert tls.credentials() is good
        file.write_bytes(kept)
        tls.version()
        good = tls.credentials()
        tls._version = 1
    other = Authority(tmp_path / "other").sign("client")[1]
    key.write_bytes(other.read_bytes())  # another certificate's key
    assert tls.version() == 1
    assert tls.credentials() is good
    authority.sign("client")
    assert tls.version() == 2
    assert tls.credentials() is not good


def test_files_that_are_wrong_at_first_are_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(ValueError, match=r"nothing\.pem"):
        EtcdTLS(tmp_path / "nothing.pem")
    (tmp_path / "bad.pem").write_text("bad")
    with pytest.raises(ValueError, match=r"bad\.pem"):
        EtcdTLS(authority.file, tmp_path / "bad.pem", tmp_path / "bad.pem")


def test_a_token_may_end_with_a_line_and_has_to_be_one() -> None:
    assert authorization("abc\n") == (("authorization", "Bearer abc"),)
    for wrong in ("", " \n", "a\nb", "\u00fc"):
        with pytest.raises(ValueError, match="printable ASCII"):
            holdfast.connect("localhost:1", token=wrong)
