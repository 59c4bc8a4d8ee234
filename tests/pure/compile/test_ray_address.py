"""Where a Ray cluster is said to be; needs no Ray. The pool itself is tested in tests/scale."""

import socket

import pytest

from rpa_tune.compile.ray_pool import require_answer
from rpa_tune.errors import UsageError


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            with pytest.raises(UsageError, match="cannot connect to a Ray cluster") as refused:
                require_answer(form)
            assert refused.value.where == f"RAY_ADDRESS={form}"
        listener.listen()
        for form in (address, f"ray://{address}"):
            require_answer(form)


def test_names_that_ray_looks_up_are_let_through():
    require_answer("auto")
