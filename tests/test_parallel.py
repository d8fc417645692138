"""Computing side by side gives what computing in turn gives, and leaves torch as it was."""

from __future__ import annotations

import pytest
import torch

from lorarar.parallel import map_layers


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@torch.no_grad()
def test_results_are_in_order_and_each_has_one_thread():
    found = map_layers(lambda number: (number**2, torch.get_num_threads()), ((number,) for number in range(50)))
    assert found == [(number**2, 1) for number in range(50)]


@torch.no_grad()
def test_products_are_the_same_bit_for_bit_whatever_the_number_of_threads(threads: int):
    pairs = [torch.randn(2, 96, 96, generator=torch.Generator().manual_seed(seed)).unbind() for seed in range(8)]
    found = map_layers(torch.mm, pairs)
    torch.set_num_threads(1)
    assert all(torch.equal(product, a @ b) for product, (a, b) in zip(found, pairs, strict=True))
    torch.set_num_threads(threads)


def test_gradients_are_recorded():
    x = torch.ones(3, requires_grad=True)
    sum(map_layers(lambda factor: (x * factor).sum(), [(1.0,), (2.0,)])).backward()
    assert x.grad.tolist() == [3.0, 3.0, 3.0]


@torch.no_grad()
def test_no_gradients_are_recorded_where_none_are_wanted():
    x = torch.ones(3, requires_grad=True)
    assert not any(y.requires_grad for y in map_layers(lambda factor: x * factor, [(1.0,), (2.0,)]))


@torch.no_grad()
def test_a_failure_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        map_layers(lambda number: 1 / number, [(1,), (0,), (2,)])
