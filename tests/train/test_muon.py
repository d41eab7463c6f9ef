"""Muon against torch's own and against a Newton-Schulz iteration written out here."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from lens_train.optim.muon import Muon, orthogonalise

SHAPES = [(48, 48), (96, 32), (32, 96)]


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def walk(optimizer, parameter, grads):
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach().clone()


def newton_schulz(matrix, steps=5):
    """The quintic iteration of K. Jordan et al., in float64."""
    x = matrix / np.linalg.norm(matrix)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T, steps).T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def reference_walk(weight, grads, *, lr, momentum=0.95, weight_decay=0.0):
    """Nesterov momentum as an average, decoupled decay, steps of 0.2·√max(rows, columns)."""
    weight, average = weight.double().numpy().copy(), np.zeros(weight.shape)
    for grad in grads:
        grad = grad.double().numpy()
        average = momentum * average + (1 - momentum) * grad
        update = newton_schulz(momentum * average + (1 - momentum) * grad)
        weight = weight * (1 - lr * weight_decay) - lr * 0.2 * max(weight.shape) ** 0.5 * update
    return torch.from_numpy(weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_agrees_with_the_iteration_written_out(shape, steps, weight_decay):
    start, grads = torch.ones(shape), gradients(shape, steps)
    parameter = torch.nn.Parameter(start.clone())
    moved = walk(Muon([parameter], lr=0.02, weight_decay=weight_decay), parameter, grads)
    expected = reference_walk(start, grads, lr=0.02, weight_decay=weight_decay)
    torch.testing.assert_close(moved.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 10])
def test_agrees_with_torch_as_far_as_bfloat16_goes(shape, steps):
    start, grads = torch.zeros(shape), gradients(shape, steps, seed=1)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    moved = walk(Muon([ours], lr=0.02), ours, grads)
    options = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    expected = walk(torch.optim.Muon([theirs], lr=0.02, **options), theirs, grads)
    assert (moved - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("shape", [(128, 32), (32, 128), (3, 40, 80), (2, 80, 40)])
def test_singular_values_come_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(2)), 5))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_badly_conditioned_square_matrices_come_near_one_too():
    u, v = (torch.linalg.qr(matrix)[0] for matrix in gradients((64, 64), 2))
    matrix = u @ torch.diag(torch.logspace(-1.5, 0, 64)) @ v
    values = torch.linalg.svdvals(orthogonalise(matrix, 5))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_directions_are_kept(shape):
    (matrix,) = gradients(shape, 1)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix, 5) @ vh.T
    assert inner.diagonal().min() > 0
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-3


def test_tall_is_wide_transposed():
    (matrix,) = gradients((90, 30), 1)
    torch.testing.assert_close(orthogonalise(matrix, 5), orthogonalise(matrix.T, 5).T, rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_gradient_does_not_matter():
    (matrix,) = gradients((30, 60), 1)
    for scale in (1e-3, 1e6):
        torch.testing.assert_close(orthogonalise(scale * matrix, 5), orthogonalise(matrix, 5), rtol=1e-2, atol=1e-3)
    assert not orthogonalise(torch.zeros(4, 6), 5).any()


def test_matrices_of_one_shape_together_are_as_one_by_one():
    shapes = [(24, 40), (40, 24), (24, 40), (16, 16), (24, 40)]
    grads = [gradients(shape, 4, seed=number) for number, shape in enumerate(shapes)]
    together = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = Muon(together, lr=0.1, weight_decay=0.1)
    for step in range(4):
        for parameter, own in zip(together, grads, strict=True):
            parameter.grad = own[step].clone()
        optimizer.step()
    for parameter, shape, own in zip(together, shapes, grads, strict=True):
        alone = torch.nn.Parameter(torch.ones(shape))
        moved = walk(Muon([alone], lr=0.1, weight_decay=0.1), alone, own)
        torch.testing.assert_close(parameter.detach(), moved, rtol=1e-4, atol=1e-5)


def test_weight_decay_is_decoupled():
    start, grads = gradients((20, 30), 2, seed=9)
    plain, decayed = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    without = walk(Muon([plain], lr=0.1), plain, [grads])
    with_decay = walk(Muon([decayed], lr=0.1, weight_decay=0.5), decayed, [grads])
    # The update is the same; only the weights shrink, by lr·decay.
    torch.testing.assert_close(with_decay - without, -0.1 * 0.5 * start, rtol=1e-4, atol=1e-5)


def test_without_a_gradient_nothing_moves():
    moving, resting = (torch.nn.Parameter(torch.ones(8, 8)) for _ in range(2))
    optimizer = Muon([moving, resting], lr=0.1, weight_decay=0.5)
    moving.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert torch.equal(resting, torch.ones(8, 8))
    assert not torch.equal(moving, torch.ones(8, 8))


def test_the_gradient_is_left_as_it_was():
    (grad,) = gradients((8, 12), 1)
    parameter = torch.nn.Parameter(torch.zeros(8, 12))
    parameter.grad = grad.clone()
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter.grad, grad)


def test_goes_on_from_its_saved_state():
    grads = gradients((16, 24), 6)
    through = torch.nn.Parameter(torch.ones(16, 24))
    expected = walk(Muon([through], lr=0.1), through, grads)
    first = torch.nn.Parameter(torch.ones(16, 24))
    optimizer = Muon([first], lr=0.1)
    half = walk(optimizer, first, grads[:3])
    second = torch.nn.Parameter(half)
    resumed = Muon([second], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(walk(resumed, second, grads[3:]), expected)
