"""Prompts: a clean drawing shows its class, and the head made of them is that of the equation."""

import numpy as np
import pytest
import torch

import data
from encoders.heads import HEADS
from support import close
from tasks import drawn, prompts


def regions(picture):
    """Number of connected regions (8 neighbours) of a picture's marks, whatever its polarity."""
    marks, found = np.abs(picture - np.median(picture)) > 0.3, 0
    while marks.any():
        found, front = found + 1, [tuple(np.argwhere(marks)[0])]
        while front:
            i, j = front.pop()
            if 0 <= i < drawn.SIZE and 0 <= j < drawn.SIZE and marks[i, j]:
                marks[i, j] = False
                front += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return found


@pytest.mark.parametrize("task", drawn.TASKS)
def test_every_task_has_drawings_of_every_class(task):
    images, labels = data.prompts(task)
    assert images.shape == (40 * data.classes(task), 1, 28, 28) and images.dtype == torch.float32
    assert labels.bincount().tolist() == [40] * data.classes(task)
    assert torch.equal(images, data.prompts(task)[0])
    assert list(prompts.PROMPTS) == list(drawn.TASKS)


def test_a_die_shows_its_number():
    images, labels = prompts.sample("count")
    assert [regions(image) for image in images] == (labels + 1).tolist()


def test_arrows_and_gratings_turn_with_their_class():
    """An arrow is wider towards its head, which class k has k times 30 degrees from the top,
    clockwise. The waves of a grating of class k run along k times 15 degrees."""
    for image, label in zip(*prompts.sample("arrows")):
        marks = np.abs(image - np.median(image)) > 0.4
        turn = label * np.pi / 6
        along = drawn.X * np.sin(turn) - drawn.Y * np.cos(turn)      # class 0 points up
        across = np.abs(drawn.X * np.cos(turn) + drawn.Y * np.sin(turn))
        assert (across * along)[marks].sum() > 0
    for image, label in zip(*prompts.sample("stripes")):
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(image - image.mean())))
        j, i = np.unravel_index(spectrum.argmax(), spectrum.shape)
        turn = np.arctan2(j - 14, i - 14) - label * np.pi / 12
        assert abs((turn + np.pi / 2) % np.pi - np.pi / 2) < 0.3


def test_the_head_of_prompts_by_hand():
    """Centres from drawings around their own mean, then pictures around theirs."""
    drawings = torch.tensor([[3.0, 1.0], [3.0, 3.0], [1.0, 2.0], [1.0, 2.0]]).double()
    head = HEADS["prompts"](2, 2).double().fit(drawings, torch.tensor([0, 0, 1, 1]))
    close(head.c, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double())
    head.center(torch.tensor([[10.0, 0.0], [12.0, 4.0]]).double())
    close(head.mu, torch.tensor([11.0, 2.0]).double())
    close(head(torch.tensor([[14.0, -2.0]]).double()), torch.tensor([[6.0, -6.0]]).double())
