import pytest

from rpa_tune.llo.parse import load_program


@pytest.fixture
def program_of(tmp_path):
    """Parses dump text."""

    def parse(text):
        path = tmp_path / "1-toy.1-01-final_bundles.txt"
        path.write_text(text)
        return load_program(path)

    return parse
