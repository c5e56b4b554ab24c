"""Options of `docker volume create`."""

import pytest

from fsd.core.errors import ConfigurationError
from fsd.core.ids import LayerId, PoolId
from fsd.namespace.records import Volume
from fsd.plugin.options import VolumeOptions, differences, made_by_docker, options_of, parse, request
from fsd.protocol.cluster import CreateVolume

ALL = {
    "size": "10G", "inodes": "1000", "replicas": "3", "min_replicas": "2", "uid": "1000", "gid": "1001", "mode": "0750",
}  # fmt: skip


def made(asked: CreateVolume) -> Volume:
    """As the metadata server makes it."""
    return Volume(
        asked.name, LayerId(1), PoolId(1), asked.replicas, asked.min_replicas, asked.quota_bytes, asked.quota_inodes,
        labels=asked.labels,
    )  # fmt: skip


def test_every_option_is_understood():
    assert parse(ALL) == VolumeOptions(10 << 30, 1000, 3, 2, 1000, 1001, 0o750)
    assert parse({}) == VolumeOptions()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"nonsense": "1"}, "unknown option 'nonsense'; known are size, inodes"),
        ({"size": "x"}, "option size: 'x' is not a size"),
        ({"mode": "999"}, "option mode: '999' is not a mode in octal"),
        ({"mode": "10000"}, "option mode"),
        ({"uid": "-1"}, "option uid: '-1' is not a whole number"),
        ({"uid": str(0xFFFF_FFFF)}, "option uid"),
        ({"replicas": "0"}, "option replicas"),
        ({"replicas": "1", "min_replicas": "2"}, "min_replicas: 2 is above replicas 1"),
    ],
)
def test_what_is_wrong_is_told_by_name(given, text):
    with pytest.raises(ConfigurationError) as refused:
        parse(given)
    assert text in str(refused.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigurationError) as refused:
        parse({"size": "x", "nonsense": "1", "mode": "9"})
    assert len(str(refused.value).splitlines()) == 3


def test_a_volume_tells_what_it_was_made_with():
    volume = made(request("v", parse(ALL)))
    assert options_of(volume) == parse(ALL)
    assert made_by_docker(volume)
    assert differences(volume, parse(ALL)) == []
    assert differences(volume, VolumeOptions()) == []


def test_only_what_was_asked_for_is_put_back_on_the_root():
    volume = made(request("v", parse({"uid": "7"})))
    assert (options_of(volume).uid, options_of(volume).gid, options_of(volume).mode) == (7, None, None)


def test_other_options_than_the_volumes_are_found():
    volume = made(request("v", parse(ALL)))
    assert differences(volume, parse({"size": "11G", "uid": "1000", "mode": "0700"})) == ["size", "mode"]


def test_a_volume_of_somebody_else_is_not_dockers():
    assert not made_by_docker(Volume("v", LayerId(1), PoolId(1), 2, 1))
