import pytest

from data.pictures import embeddings
from tests.data.corpus.copied_pictures import run_here


@pytest.fixture
def here(monkeypatch):
    """Makes the model run in this process; returns the list of its arguments."""
    asked = []

    def run(model, arguments):
        asked.append(arguments)
        run_here(model, arguments)

    monkeypatch.setattr(embeddings, "_run", run)
    return asked
