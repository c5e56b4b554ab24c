from collections.abc import Iterator

import pytest

from tests.namespace.trees import Tree


@pytest.fixture
def tree() -> Iterator[Tree]:
    tree = Tree()
    yield tree
    tree.close()
