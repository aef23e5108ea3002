"""Hugging Face's side of lowrank's training benchmarks: SmolLM2-135M, full rows of random tokens, all of them supervised, clipping at 1;
LoRA r=16 on all linear layers (PEFT), the same on NF4 weights with double quantisation (PEFT and bitsandbytes), or all weights
(Transformers). A bare training loop: nothing of Transformers' Trainer is in the time measured.

    python huggingface_train.py --gguf FILE --cache FOLDER [--method lora|qlora|full] [--optim adamw|adamw_8bit] [--checkpointing]
                                [--threads 2] [--dtype fp32|bf16] [--batch 4] [--length 256] [--compile]

Stays alive, so that a driver can interleave it with others. Says {"ready": true, ...} on a line, then answers each line `run K` with one
JSON line about K timed steps; ends with its input. Everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import peft
import torch
import torch._inductor.config
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from base_model import bf16_folder

RANK, ALPHA = 16, 32
LEARNING_RATE, MAX_GRAD_NORM = 2e-4, 1.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Training:
    """The model, its optimizer and one batch; step() is what is timed."""

    def __init__(self, folder: pathlib.Path, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        dtype = DTYPES[options.dtype]
        self.model = load(folder, dtype, options).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer(options.optim, self.parameters)
        self.ids = torch.randint(self.model.config.vocab_size, (options.batch, options.length))
        # As Trainer(bf16=True): the adapter's weights stay fp32 and are multiplied in bf16.
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
            # The compiler looks at the CPU, not at this variable; and its cache would hand out what was compiled for AVX-512.
            torch._inductor.config.cpp.simdlen = 256
        self.run = torch.compile(self.model) if options.compile else self.model
        self.update_milliseconds = 0.0

    def step(self) -> float:
        with self.autocast:
            loss = self.run(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        begin = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update_milliseconds = 1000.0 * (time.perf_counter() - begin)
        return loss.item()


def load(folder: pathlib.Path, dtype: torch.dtype, options: argparse.Namespace) -> torch.nn.Module:
    quantization = None
    if options.method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", quantization_config=quantization)
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if options.method != "full":
        config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0)
        model = get_peft_model(model, config)
    if options.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def optimizer(name: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(training: Training, steps: int) -> dict:
    milliseconds, updates, loss = [], [], 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        loss = training.step()
        milliseconds.append(1000.0 * (time.perf_counter() - begin))
        updates.append(training.update_milliseconds)
    return {
        "tokens_per_second": 1000.0 * steps * training.ids.numel() / sum(milliseconds),
        "step_ms": {"best": min(milliseconds), "median": statistics.median(milliseconds)},
        "update_ms": min(updates),
        "loss": loss,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def steps_of(line: str) -> int:
    command, _, count = line.strip().partition(" ")
    if command != "run" or not count.isdigit() or int(count) == 0:
        sys.exit(f"huggingface_train.py: found {line.strip()!r}, expected 'run K'")
    return int(count)


def say(value: dict) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for the unpacked bf16 model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", choices=["lora", "qlora", "full"], default="lora")
    parser.add_argument("--optim", choices=["adamw", "adamw_8bit"], default="adamw")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of every layer")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = bf16_folder(options.gguf.resolve(), options.cache.resolve())
    training = Training(folder, options)
    for _ in range(options.warmup):
        training.step()
    packages = {"torch": torch, "transformers": transformers, "peft": peft, "bitsandbytes": sys.modules.get("bitsandbytes")}
    versions = {"python": sys.version.split()[0]} | {name: package.__version__ for name, package in packages.items() if package is not None}
    say({"ready": True, "threads": options.threads, "dtype": options.dtype, "compile": options.compile, "versions": versions})
    for line in sys.stdin:
        if line.strip():
            say(measure(training, steps_of(line)) | {"versions": versions})


if __name__ == "__main__":
    main()
