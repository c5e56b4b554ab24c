"""Mount options and mountinfo."""

import pytest

from fsd.core.errors import ConfigurationError
from fsd.mount import mountinfo
from fsd.mount.options import SessionOptions, parse


def test_options_go_to_the_kernel_and_the_client_and_the_rest_of_fstab_is_ignored():
    options = parse("ro,noatime,soft,timeout=5,cache=1G,cache_policy=lfu,_netdev,nofail,x-systemd.automount", "me")
    assert options.kernel == ("ro", "noatime")
    assert options.read_only
    assert (options.client.hard, options.client.timeout_s) == (False, 5.0)
    assert (options.client.cache_bytes, options.client.cache_policy) == (1 << 30, "lfu")
    assert options.client.name == "me"
    assert parse("", "me").client.hard


def test_unknown_options_are_named_all_at_once():
    with pytest.raises(ConfigurationError) as error:
        parse("bake,cake=1,cache,timeout=never,write_back=1K", "me")
    lines = str(error.value).splitlines()
    assert lines[0] == "unknown mount option bake"
    assert lines[1] == "unknown mount option cake="
    assert lines[2] == "cache needs a value"
    assert lines[3].startswith("mount option timeout: 'never'")
    assert lines[4] == "mount option write_back: at least 1M"


def test_what_is_asked_of_the_kernel_can_be_left_out_for_measuring():
    session = parse("nokillpriv,noparallel_dirops,noexplicit_inval,max_background=7", "me").session
    assert session == SessionOptions(True, False, False, False, 7)
    assert parse("nocompanion", "me").session == SessionOptions(companion=False)
    with pytest.raises(ConfigurationError):
        parse("max_background=0", "me")


def test_a_line_of_mountinfo_is_read_with_its_escapes():
    line = "36 35 0:98 / /mnt/a\\040b rw,noatime shared:1 - fuse.fsd 127.0.0.1:7400,h:1:/vol rw,user_id=0\n"
    mount = mountinfo.parse_line(line)
    assert mount == mountinfo.Mount("0:98", "/mnt/a b", "fuse.fsd", "127.0.0.1:7400,h:1:/vol")
    assert mount.is_fsd


def test_the_mount_that_contains_a_path_is_the_deepest():
    assert mountinfo.containing("/proc/self/stat").mountpoint == "/proc"
    assert mountinfo.mounted_at("/proc").kind == "proc"
    assert mountinfo.mounted_at("/proc/self") is None
