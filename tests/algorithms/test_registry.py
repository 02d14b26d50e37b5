"""Tables whose rows may be a plugin's."""

import pytest

from algorithms.errors import UserError
from algorithms.registry import Origin, Registry, is_registering, registering

ONE, TWO = Origin("one.py", "1" * 64), Origin("two.py", "2" * 64)


@pytest.fixture
def table():
    """A table with a row of the project's own."""
    table = Registry("fruit")
    Registry.everyone.remove(table)  # plugins that other tests load are no concern of it
    table.add("apple", 1)
    return table


def add(table, origin, **rows):
    with registering(origin):
        for name, row in rows.items():
            table.add(name, row)


def test_rows_keep_their_order_and_say_where_they_come_from(table):
    add(table, ONE, pear=2)
    assert list(table.items()) == [("apple", 1), ("pear", 2)]
    assert (table.origin("apple"), table.origin("pear")) == (None, ONE)
    assert table.built_in == ["apple"]
    assert not is_registering()


@pytest.mark.parametrize(
    ("name", "owner"), [("apple", "the project itself"), ("pear", "plugin one.py")]
)
def test_a_name_that_somebody_has_is_refused_and_the_row_stays(table, name, owner):
    add(table, ONE, pear=2)
    with pytest.raises(UserError, match=f"fruit '{name}' exists already, from {owner}: rename"):
        add(table, TWO, **{name: 3})
    assert dict(table) == {"apple": 1, "pear": 2}


def test_a_plugin_may_have_a_name_once(table):
    add(table, ONE, pear=2)
    with pytest.raises(UserError, match="'pear' is there twice"):
        add(table, ONE, pear=3)


def test_what_is_active_is_seen_and_nothing_else(table):
    add(table, ONE, pear=2)
    table.activate([])
    assert dict(table) == {"apple": 1}
    add(table, TWO, pear=3)  # another plugin may have the name, where the first is not active
    table.activate([ONE])
    assert dict(table) == {"apple": 1, "pear": 2}
    table.activate([TWO])
    assert (table["pear"], table.origin("pear")) == (3, TWO)
    with pytest.raises(UserError, match=r"'pear' exists already, from plugin one\.py"):
        table.activate([ONE, TWO])


def test_another_version_of_a_plugin_brings_rows_of_its_own(table):
    add(table, ONE, pear=2, plum=4)
    table.activate([])
    newer = Origin("one.py", "3" * 64)
    add(table, newer, pear=5)
    table.activate([newer])
    assert dict(table) == {"apple": 1, "pear": 5}


def test_rows_of_a_plugin_that_failed_can_be_entered_again(table):
    add(table, ONE, pear=2)
    table.forget(ONE)
    table.activate([])
    add(table, ONE, pear=3)
    assert table["pear"] == 3
