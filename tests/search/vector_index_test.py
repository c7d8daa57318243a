"""The index: pictures added, deleted and found, compared with exact search."""

import numpy as np
import pytest
from lancedb.index import IvfSq

from align_jax.errors import InputError
from align_jax.search import vector_index
from align_jax.search.indexing import check_place, writing_index
from align_jax.search.vector_index import (
    Description,
    IndexSource,
    create_index,
    open_index,
)

WIDTH = 32
DESCRIPTION = Description("a model", "runs/a", WIDTH, 8)


def embeddings(count, seed=0, clusters=20, width=WIDTH):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, width))
    rows = centres[random.integers(clusters, size=count)]
    rows = rows + 0.3 * random.normal(size=(count, width))
    return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def put(index, rows, first=0, state="s"):
    names = [f"it's {first + i}" for i in range(len(rows))]
    texts = [f"text {name}" for name in names]
    index.put(names, [state] * len(rows), texts, [b"jpeg"] * len(rows), rows)
    return names


@pytest.fixture
def index(tmp_path):
    return create_index(str(tmp_path / "index"), DESCRIPTION)


def nearest(rows, query, limit):
    return np.argsort(-(rows @ query), kind="stable")[:limit]


def test_the_best_come_first_with_their_cosines(index):
    rows = embeddings(300)
    names = put(index, rows)
    index.warm()  # without an index of embeddings, it does nothing
    hits = index.search(rows[7], 10)
    expected = nearest(rows, rows[7], 10)
    assert [hit.id for hit in hits] == [names[i] for i in expected]
    assert np.allclose([hit.score for hit in hits], rows[expected] @ rows[7], atol=1e-6)
    assert hits[0].text == f"text {names[7]}"
    assert len(index.search(rows[7], 1000)) == 300


def test_what_was_added_and_deleted_changes_nothing(index):
    rows = embeddings(200)
    put(index, rows)
    before = [index.search(row, 10) for row in rows[:20]]
    names = put(index, embeddings(50, seed=1), first=200)
    assert before != [index.search(row, 10) for row in rows[:20]]
    assert index.delete([*names, "not there"]) == 50
    assert before == [index.search(row, 10) for row in rows[:20]]


def test_a_picture_is_replaced_by_its_id(index):
    rows = embeddings(10)
    names = put(index, rows)
    name = names[0]
    put(index, -rows[:1], state="newer")
    assert len(index) == 10
    assert sorted(index.ids()) == sorted(names)
    assert index.search(-rows[0], 1)[0].id == name
    found = index.rows([name, "not there"], "state", "thumbnail")
    assert found == {name: {"id": name, "state": "newer", "thumbnail": b"jpeg"}}


def test_an_index_of_many_finds_what_comparing_with_all_finds(index, monkeypatch):
    monkeypatch.setattr(vector_index, "LEAST_INDEXED", 4000)
    monkeypatch.setattr(vector_index, "PARTITION", 200)
    rows = embeddings(5000)
    names = put(index, rows)
    index.optimise()
    put(index, embeddings(100, seed=1), first=5000)  # not indexed yet
    both = np.concatenate([rows, embeddings(100, seed=1)])
    found = right = 0
    for query in embeddings(50, seed=2):
        exact = [hit.id for hit in index.search(query, 10, exact=True)]
        assert exact == [f"it's {i}" for i in nearest(both, query, 10)]
        right += len({*exact} & {hit.id for hit in index.search(query, 10)})
        found += 10
    assert right / found >= 0.95
    assert index.search(rows[3], 1)[0].id == names[3]
    index.optimise()
    assert len(index) == 5100


@pytest.mark.parametrize("width", [40, 36])  # with RaBitQ's codes, and without
def test_an_index_that_grows_and_shrinks_finds_what_is_there(
    tmp_path, monkeypatch, width
):
    monkeypatch.setattr(vector_index, "LEAST_INDEXED", 2500)
    monkeypatch.setattr(vector_index, "PARTITION", 1500)
    index = create_index(str(tmp_path), Description("a model", "runs/a", width, 0))
    rows = embeddings(6000, width=width)
    for first in range(0, 6000, 500):  # more parts than are kept
        names = put(index, rows[first : first + 500], first)
        index.optimise()
    put(index, -rows[:100], 0)  # other pictures of the same ids
    assert index.delete(names) == 500
    there = np.concatenate([-rows[:100], rows[100:5500]])
    for opened in (index, open_index(str(tmp_path))):
        right = 0
        for query in embeddings(40, seed=2, width=width):
            hits = opened.search(query, 10)
            scores = there[[int(hit.id.removeprefix("it's ")) for hit in hits]] @ query
            assert np.allclose([hit.score for hit in hits], scores, atol=1e-5)
            expected = nearest(there, query, 10)
            right += len({hit.id for hit in hits} & {f"it's {i}" for i in expected})
        assert right / 400 >= 0.9


def test_an_index_of_an_earlier_release_is_read_and_then_rebuilt(index, monkeypatch):
    monkeypatch.setattr(vector_index, "LEAST_INDEXED", 1000)
    monkeypatch.setattr(vector_index, "REFINE", 50)  # so that the codes miss none
    rows = embeddings(2000)
    put(index, rows)
    earlier = IvfSq(distance_type="dot", num_partitions=4)
    index._table.create_index("embedding", config=earlier)

    def kind():
        return index._table.index_stats(index._index_name()).index_type

    for expected in ("IVF_SQ", "IVF_RQ"):
        assert kind() == expected
        index.warm()
        found = [hit.id for hit in index.search(rows[5], 10)]
        assert found == [f"it's {i}" for i in nearest(rows, rows[5], 10)]
        index.optimise()
    assert kind() == "IVF_RQ"


def test_an_index_knows_where_its_pictures_are_now(tmp_path):
    place, rows = str(tmp_path / "index"), embeddings(3)
    here = IndexSource("/here/", ("cat", "dog"))
    (name, *_) = put(create_index(place, DESCRIPTION, here), rows)
    assert open_index(place).source == here
    assert create_index(place, DESCRIPTION).source == here
    create_index(place, DESCRIPTION, IndexSource("/ü/", ()))
    assert open_index(place).source == IndexSource("/ü/", ())
    assert open_index(place).search(rows[0], 1)[0].path == f"/ü/{name}"


def test_folders_that_a_kill_left_without_a_table_are_as_if_they_were_not(tmp_path):
    place = str(tmp_path / "index")
    for name in ("pictures.lance", "source.lance"):
        (tmp_path / "index" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="no index in"):
        open_index(place)
    create_index(place, DESCRIPTION, IndexSource("/here/"))
    assert (len(open_index(place)), open_index(place).source.prefix) == (0, "/here/")


def test_an_index_is_opened_again_and_only_by_its_own_kind(index, tmp_path):
    place = str(tmp_path / "index")
    put(index, embeddings(3))
    again = open_index(place)
    assert (again.description, len(again)) == (DESCRIPTION, 3)
    moved = Description("a model", "runs/moved", WIDTH, 8)
    assert create_index(place, moved).description == DESCRIPTION
    other = Description("another", "runs/a", WIDTH, 9)
    differing = "model: 'a model' -> 'another'; thumbnail: 8 -> 9"
    with pytest.raises(InputError, match=differing):
        create_index(place, other)
    with pytest.raises(InputError, match=r"no index in '.*none'; make one with"):
        open_index(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match=r"has \(3,\) numbers, the index 32"):
        again.search(np.zeros(3, np.float32), 1)


@pytest.mark.parametrize("content", ["file", "folder"])
def test_an_index_is_not_made_in_what_holds_something_else(tmp_path, content):
    place = tmp_path / "there"
    if content == "file":
        place.write_text("a text")
    else:
        (place / "photos").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is a file|is not empty and holds no index"):
        check_place(str(place))
    for free in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        check_place(str(free))
    create_index(str(tmp_path / "new"), Description("m", "c", 8, 8))
    check_place(str(tmp_path / "new"))


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written: .*No space left"):
        with writing_index(str(tmp_path)):
            raise RuntimeError("lance error: LanceError(IO): No space left, /a/b.rs:1")
    with pytest.raises(RuntimeError, match="another"), writing_index(str(tmp_path)):
        raise RuntimeError("another")
