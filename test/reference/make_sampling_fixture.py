"""Kept tokens and probabilities of Transformers' logits processors -> test/fixtures/sampling/cases.txt

Made with transformers 5.24.0 and torch 2.15.0.   python test/reference/make_sampling_fixture.py

A row is two lines, context ids and logits, followed by two lines for each of CONFIGS: temperature topK topP minP
repetitionPenalty, then probabilities (0: dropped). Floats have nine digits, which name an fp32 value exactly.
"""

import pathlib

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# temperature, top_k, top_p, min_p, repetition_penalty; neutral values mean that generate() leaves the processor out
CONFIGS = [
    (1.0, 0, 1.0, 0.0, 1.0),
    (0.7, 0, 1.0, 0.0, 1.0),
    (1.9, 1, 1.0, 0.0, 1.0),
    (1.0, 5, 1.0, 0.0, 1.0),
    (1.0, 10000, 1.0, 0.0, 1.0),
    (1.0, 0, 0.9, 0.0, 1.0),
    (1.0, 0, 0.3, 0.0, 1.0),
    (1.0, 0, 0.0, 0.0, 1.0),
    (0.5, 0, 0.95, 0.0, 1.0),
    (1.0, 0, 1.0, 0.05, 1.0),
    (3.0, 0, 1.0, 1.0, 1.0),
    (1.0, 0, 1.0, 0.0, 1.3),
    (1.0, 0, 1.0, 0.0, 0.8),
    (0.8, 20, 0.9, 0.02, 1.2),
    (1.5, 50, 0.5, 0.2, 1.1),
]


def processors(temperature, top_k, top_p, min_p, penalty):
    """As GenerationMixin._get_logits_processor lists them."""
    chain = LogitsProcessorList()
    if penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(penalty))
    if temperature != 1.0:
        chain.append(TemperatureLogitsWarper(temperature))
    if top_k != 0:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        chain.append(TopPLogitsWarper(top_p))
    if min_p > 0.0:
        chain.append(MinPLogitsWarper(min_p))
    return chain


def rows(generator):
    """Random logits, sharp and flat, and rows with ties at every edge."""
    normal = torch.randn(101, generator=generator)
    yield torch.tensor([1.25])
    yield normal[:7] * 2
    yield normal * 4
    yield torch.randn(499, generator=generator)
    yield torch.round(normal * 2) / 2  # many equal logits
    yield torch.zeros(8)
    yield torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 0.0, 0.0, -1.0])
    yield torch.cat([normal[:20], torch.full((5,), -float("inf")), normal[20:40]])


def line(values):
    return " ".join(f"{value:.9g}" for value in values)


generator = torch.Generator().manual_seed(4)
lines = []
for logits in rows(generator):
    vocab = len(logits)
    context = torch.randint(0, vocab, (2 * min(vocab, 8),), generator=generator)  # some ids occur twice
    lines += [line(context.tolist()), line(logits.tolist())]
    for config in CONFIGS:
        scores = processors(*config)(context[None], logits[None].clone())
        probabilities = torch.softmax(scores[0].double(), dim=-1)
        lines += [line(config), line(probabilities.tolist())]

folder = pathlib.Path(__file__).parent.parent / "fixtures" / "sampling"
folder.mkdir(parents=True, exist_ok=True)
(folder / "cases.txt").write_text("\n".join(lines) + "\n")
