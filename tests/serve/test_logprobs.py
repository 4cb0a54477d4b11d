"""Log probabilities are log softmax of the logits, and alternatives the likeliest tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.serve.logprobs import token_logprob


class Numbers:
    """A tokenizer whose tokens are their ids."""

    def token(self, token: int) -> tuple[str, bytes | None]:
        return str(token), str(token).encode()


@given(st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=300), st.integers(0, 20), st.data())
def test_logprobs_are_log_softmax_of_a_full_sort(values: list[float], count: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(values) - 1))
    told = token_logprob(np.array(values, np.float32), token, count, Numbers())  # type: ignore[arg-type]
    expected = torch.tensor(values, dtype=torch.float64).log_softmax(0).tolist()
    order = sorted(range(len(values)), key=lambda other: (-values[other], other))[:count]
    np.testing.assert_allclose(told.logprob, expected[token], atol=1e-5)
    assert told.data == str(token).encode()
    assert [each.text for each in told.alternatives] == [str(other) for other in order]
    np.testing.assert_allclose([each.logprob for each in told.alternatives], [expected[o] for o in order], atol=1e-5)
