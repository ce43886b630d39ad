"""GPT: what a token may see, log-probabilities, sampling up to the end token."""

import math

import pytest
import torch
import torch.nn.functional as F

from encoders.gpt import GPT, log_probs, sample
from support import close

END, PAD = 3, 0


@pytest.fixture
def model():
    """Two blocks over ten tokens in float64, with weights large enough to tell tokens apart."""
    torch.manual_seed(0)
    model = GPT(vocab=10, positions=12, width=16, depth=2, heads=2, hidden=24, pad=PAD, end=END)
    for table in (model.word, model.position):
        table.weight.data.mul_(20)
    return model.double()


class Fixed:
    """A `model` whose next token has the same logits whatever came before."""

    end, pad = END, PAD

    def __init__(self, *logits):
        self.row = torch.tensor(logits)

    def __call__(self, ids):
        return ids[..., None].float()

    def logits(self, z):
        return self.row.expand(*z.shape[:-1], -1)


def test_a_token_sees_only_what_came_before(model):
    """Another token at place 4 changes the states from 4 on, and none before to the last bit."""
    ids = torch.tensor([[2, 5, 6, 7, 8, 9]])
    other = ids.clone()
    other[0, 4] = 4
    a, b = model(ids)[0], model(other)[0]
    assert torch.equal(a[:4], b[:4])
    assert all((a[t] - b[t]).abs().max() > 1e-3 for t in (4, 5))
    close(model(ids[:, :3])[0], a[:3], atol=1e-12, rtol=0)


def test_attention_is_the_definition(model):
    """The first block by hand: scores of earlier tokens only, softmax, mixture."""
    ids, block, h = torch.tensor([[2, 5, 6, 7]]), model.blocks[0], 2
    z = model.word(ids) + model.position.weight[:4]
    x = F.layer_norm(z, (16,), block.norm1.weight, block.norm1.bias, 1e-5)[0]
    mixed = torch.zeros(4, 16, dtype=torch.float64)
    for head in range(h):
        part = slice(8 * head, 8 * head + 8)
        q, k, v = (layer(x)[:, part] for layer in (block.q, block.k, block.v))
        for t in range(4):
            weights = torch.softmax(k[:t + 1] @ q[t] / math.sqrt(8), 0)
            mixed[t, part] = weights @ v[:t + 1]
    z = z[0] + block.out(mixed)
    model.blocks = model.blocks[:1]
    want = z + block.mlp(F.layer_norm(z, (16,), block.norm2.weight, block.norm2.bias, 1e-5))
    want = F.layer_norm(want, (16,), model.norm.weight, model.norm.bias, 1e-5)
    close(model(ids)[0], want, atol=1e-12, rtol=0)


def test_log_probs_by_hand():
    """Position t - 1 predicts t: of logits (0, ln 3) the tokens have 1/4 and 3/4."""
    logits = torch.tensor([0.0, math.log(3)]).expand(1, 3, 2)
    ids = torch.tensor([[1, 0, 1]])
    close(log_probs(logits, ids).exp(), torch.tensor([[0.25, 0.75]]))


def test_log_probs_of_a_batch_are_those_of_its_rows(model):
    """Padding on the right changes nothing before it."""
    rows = [[2, 5, 6, 7, END], [2, 8, END]]
    batch = torch.tensor([row + [PAD] * (7 - len(row)) for row in rows])
    together = log_probs(model.logits(model(batch)), batch)
    for row, ours in zip(rows, together):
        alone = torch.tensor([row])
        close(ours[:len(row) - 1], log_probs(model.logits(model(alone)), alone)[0],
              atol=1e-12, rtol=0)


def test_samples_follow_the_softmax_at_their_temperature():
    """p = (.1, .2, .3, .4): frequencies of 20,000 first tokens; at temperature 1/2 p^2 / sum."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    fixed, prompts = Fixed(*p.log().tolist()), torch.full((20_000, 1), 2)
    for temperature, want in ((1.0, p), (0.5, p ** 2 / (p ** 2).sum())):
        generator = torch.Generator().manual_seed(1)
        ids = sample(fixed, fixed, prompts, 1, temperature=temperature, generator=generator)
        close(ids[:, 1].bincount(minlength=4) / 20_000, want, atol=0.012, rtol=0)


def test_after_the_end_all_is_padding(model):
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([[2, 5]]).repeat(200, 1)
    ids = sample(model, model, prompts, 8, generator=generator)
    assert ids.shape == (200, 10) and torch.equal(ids[:, :2], prompts)
    ended = (ids[:, 2:] == END).cumsum(1) - (ids[:, 2:] == END).long() > 0
    assert ended.any() and (ids[:, 2:][ended] == PAD).all()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(ids, sample(model, model, prompts, 8, generator=generator))
