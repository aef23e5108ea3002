"""What Transformers and PEFT compute with the real SmolLM2-135M-Instruct, read from the same GGUF file in fp32.

test/fixtures/smollm2/ then holds
    generation.json    chat prompts: the text that the template renders, its ids, and 32 greedy tokens (fewer when the model stops)
    logits.json        a short text: for each position the 20 largest logits with their ids, and log Σ exp over the vocabulary
    training.json      20 batches of 4 rows of 128 token ids (from training_text.txt, written for this fixture), and what PEFT makes of
                       them: the loss of each of 20 steps of AdamW from the adapter of initial_adapter.py, the loss on the first batch
                       afterwards, and the line of print_trainable_parameters
"""

from __future__ import annotations

import contextlib
import io
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fixture_files import write_json
from initial_adapter import set_initial_adapter

PROMPTS = [
    "What is the capital of France?",
    "Tell me something about the sea.",
    "What is 7 times 8?",
    "Name three animals that can fly.",
    "Explain in simple words why the sky is blue.",
    "Translate 'good morning' to Spanish.",
]
LOGITS_TEXT = "The quick brown fox jumps over the lazy dog. In 1969, two people walked on the moon for the first time;\nnobody had done it before."
TOP = 20
NEW_TOKENS = 32
STEPS, ROWS, LENGTH = 20, 4, 128
LEARNING_RATE, MAX_GRAD_NORM = 2e-4, 1.0
# Below this gap between the two best logits another correct implementation could choose differently.
SMALLEST_MARGIN = 2e-3


def load(gguf: pathlib.Path):
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return model.eval(), tokenizer


def generation_fixture(model, tokenizer) -> dict:
    prompts = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True,
                                return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id)
        margins = [(best[0] - best[1]).item() for best in (step[0].topk(2).values for step in output.logits)]
        if min(margins) < SMALLEST_MARGIN:
            raise RuntimeError(f"{prompt!r}: two tokens are {min(margins):.1e} apart; choose another prompt")
        generated = output.sequences[0, ids.shape[1]:].tolist()
        prompts.append({"prompt": prompt, "rendered": text, "ids": ids[0].tolist(), "generated": generated,
                        "text": tokenizer.decode(generated, skip_special_tokens=True), "smallestMargin": min(margins)})
    return {"newTokens": NEW_TOKENS, "prompts": prompts}


def logits_fixture(model, tokenizer) -> dict:
    ids = tokenizer(LOGITS_TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0]
    top = logits.topk(TOP, dim=-1)
    return {"text": LOGITS_TEXT, "ids": ids[0].tolist(), "largest": logits.abs().max().item(), "topIds": top.indices.tolist(),
            "topLogits": top.values.tolist(), "logSumExp": logits.logsumexp(-1).tolist()}


def training_batches(ids: list[int]) -> list[list[list[int]]]:
    """Rows start a prime number of tokens apart, so that no two are the same."""
    starts = [(97 * row) % (len(ids) - LENGTH) for row in range(STEPS * ROWS)]
    rows = [ids[start:start + LENGTH] for start in starts]
    return [rows[ROWS * step:ROWS * (step + 1)] for step in range(STEPS)]


def training_fixture(model, tokenizer, text: str) -> dict:
    batches = training_batches(tokenizer(text, add_special_tokens=False).input_ids)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0))
    set_initial_adapter(peft)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        peft.print_trainable_parameters()
    parameters = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    losses, norms = [], []
    for batch in batches:
        loss = loss_of(peft, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        final = loss_of(peft, batches[0]).item()
    return {
        "trainableParameters": printed.getvalue().strip(),
        "options": {"learningRate": LEARNING_RATE, "weightDecay": 0, "maxGradNorm": MAX_GRAD_NORM, "lrSchedulerType": "constant"},
        "losses": losses,
        "gradNorms": norms,
        "finalLossOnFirstBatch": final,
        "batches": batches,
    }


def loss_of(model, rows: list[list[int]]) -> torch.Tensor:
    ids = torch.tensor(rows)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def write_real_model_fixture(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    model, tokenizer = load(gguf)
    write_json(folder / "generation.json", generation_fixture(model, tokenizer))
    write_json(folder / "logits.json", logits_fixture(model, tokenizer))
    write_json(folder / "training.json", training_fixture(model, tokenizer, (folder / "training_text.txt").read_text()))
