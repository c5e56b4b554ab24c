"""Settings: precedence, every value checked, all faults at once."""

import pytest

from fsd.core import config
from fsd.core.config import Option, resolve, section
from fsd.core.errors import ConfigurationError

LISTEN = Option("listen", config.address, "", default="127.0.0.1:1")
LEASE = Option("lease_s", config.seconds, "", default=6.0)
DATA = Option("data", config.text, "", required=True)


def test_a_flag_beats_the_environment_and_the_environment_beats_the_file():
    table = {"listen": "f:1", "lease_s": 3}
    assert resolve([LISTEN], {}, {}, {})["listen"] == "127.0.0.1:1"
    assert resolve([LISTEN, LEASE], {}, {}, table) == {"listen": "f:1", "lease_s": 3.0}
    assert resolve([LISTEN, LEASE], {}, {"FSD_LISTEN": "e:1"}, table)["listen"] == "e:1"
    assert resolve([LISTEN, LEASE], {"listen": "a:1"}, {"FSD_LISTEN": "e:1"}, table)["listen"] == "a:1"


def test_all_faults_of_all_sources_are_told_at_once():
    with pytest.raises(ConfigurationError) as error:
        resolve([LISTEN, LEASE, DATA], {"listen": "x"}, {"FSD_LEASE_S": "-1"}, {"nonsense": 1})
    lines = str(error.value).splitlines()
    assert lines[0].startswith("--listen: 'x' is not an address")
    assert lines[1].startswith("FSD_LEASE_S: '-1' is not a number of seconds")
    assert lines[2].startswith("--data is missing")
    assert lines[3].startswith("nonsense in the configuration file: no such option")
    assert len(lines) == 4


def test_a_hidden_option_comes_from_flags_alone():
    hidden = Option("ready_fd", config.integer(0, 10), "", hidden=True)
    assert resolve([hidden], {"ready_fd": "3"}, {"FSD_READY_FD": "4"}, {})["ready_fd"] == 3
    assert resolve([hidden], {}, {"FSD_READY_FD": "4"}, {})["ready_fd"] is None


def test_a_file_has_sections_named_as_commands_and_nothing_else():
    assert section({"mount": {"x": 1}, "up": {}}, "mount", ("mount", "up")) == {"x": 1}
    assert section({}, "mount", ("mount", "up")) == {}
    with pytest.raises(ConfigurationError, match="no such section"):
        section({"mnt": {}}, "mount", ("mount", "up"))
    with pytest.raises(ConfigurationError, match="write it into the section"):
        section({"listen": "x"}, "mount", ("mount", "up"))


@pytest.mark.parametrize(
    ("kind", "good", "value"),
    [
        (config.size, "10G", 10 << 30),
        (config.seconds, "0.5", 0.5),
        (config.switch, "no", False),
        (config.switch, "YES", True),
        (config.power_of_two(1, 1024), "256", 256),
        (config.chunk_size, "4M", 4 << 20),
        (config.address, "[::1]:80", "[::1]:80"),
        (config.addresses, "a:1,b:2", ("a:1", "b:2")),
        (config.choice("lru", "lfu"), "lfu", "lfu"),
        (config.volume_name, "my-vol.1", "my-vol.1"),
        (config.mount_source, "h:1,i:2:/vol", (("h:1", "i:2"), "vol")),
    ],
)
def test_a_good_value_is_taken(kind, good, value):
    assert kind(good) == value


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (config.size, "ten"),
        (config.seconds, "0"),
        (config.seconds, "nan"),
        (config.switch, "maybe"),
        (config.integer(1, 7), "8"),
        (config.integer(1, 7), "1.5"),
        (config.power_of_two(1, 1024), "100"),
        (config.chunk_size, "8M"),
        (config.chunk_size, "3M"),
        (config.address, "host"),
        (config.address, "host:70000"),
        (config.addresses, "a:1,"),
        (config.choice("lru", "lfu"), "fifo"),
        (config.volume_name, "../x"),
        (config.mount_source, "host:1"),
        (config.mount_source, "host:/vol"),
        (config.path, ""),
    ],
)
def test_a_bad_value_is_refused_with_one_line(kind, bad):
    with pytest.raises(ValueError) as error:
        kind(bad)
    assert "\n" not in str(error.value)
