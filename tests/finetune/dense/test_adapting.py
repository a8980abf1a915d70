"""Learning without labels: entropies and guesses worked by hand, and a teacher that follows as the formula says."""

import math

import pytest
import torch

from finetune.dense.adapting import Taught, entropy_loss, guess_labels, guessed_loss
from tests.finetune.dense.test_dense_network import RGB, network


def test_entropy_of_even_and_of_sure_predictions() -> None:
    """Of three pixels one is undecided between two of four classes, one sure, one not seen: (1/2 + 0) / 2."""
    logits = torch.tensor([[0.0, 0, -99, -99], [99, 0, 0, 0], [0, 0, 0, 0]]).T.reshape(1, 4, 1, 3)
    seen = torch.tensor([[[True, True, False]]])
    assert entropy_loss(logits, seen).item() == pytest.approx(0.25, abs=1e-6)
    assert entropy_loss(logits, ~seen).item() == pytest.approx(1.0)
    assert entropy_loss(logits, torch.zeros_like(seen)).item() == 0


def test_classes_are_guessed_where_the_teacher_is_sure_and_a_pixel_is_seen() -> None:
    chances = torch.tensor([[0.95, 0.05], [0.2, 0.8], [0.05, 0.95], [0.01, 0.99]]).T.reshape(1, 2, 2, 2)
    seen = torch.tensor([[[True, True], [True, False]]])
    guess = guess_labels(chances.log(), seen, 0.9)
    assert guess.label.tolist() == [[[0, 255], [1, 255]]]
    assert guess.share.item() == pytest.approx(2 / 3)
    even = torch.zeros(1, 2, 2, 2)
    assert guessed_loss(even, guess).item() == pytest.approx(2 / 3 * math.log(2))
    nothing = guess_labels(even, seen, 0.9)
    assert nothing.share.item() == 0 and guessed_loss(even, nothing).item() == 0


def test_a_teacher_is_the_running_mean_of_its_student() -> None:
    taught = Taught(network("fpn", mode="full", optical=RGB)).train()
    first = {name: value.clone() for name, value in taught.student.named_parameters()}
    with torch.no_grad():
        for value in taught.student.parameters():
            value.add_(1)
        next(iter(taught.student.head.buffers())).add_(3)
    taught.follow(0.75)
    taught.follow(0.75)
    for name, value in taught.teacher.named_parameters():  # 0 -> 1/4 -> 1/4 + 3/4 * 1/4
        assert torch.allclose(value, first[name] + 0.4375, atol=1e-5)
    pairs = zip(taught.teacher.buffers(), taught.student.buffers(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)
    assert taught.student.training and not taught.teacher.training
    assert not any(value.requires_grad for value in taught.teacher.parameters())
