import assert from 'node:assert/strict';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LowrankError } from '../lib/errors.ts';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { type GgufValue, native } from '../lib/native.ts';
import { isSafePattern } from '../lib/tokenizer/regex_policy.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';

const fixtures = fileURLToPath(new URL('./fixtures/text/', import.meta.url));
const failsWith = (code: string, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof LowrankError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, pattern);
  return true;
};
type Json = Record<string, unknown>;

describe('tokenizer files', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lowrank-tokenizer-'));
  });
  afterEach(() => rm(folder, { recursive: true }));

  const copy = (name: string) => cp(fixtures + name, folder, { recursive: true });
  const edit = async (file: string, change: (json: Json) => unknown) => {
    const json = JSON.parse(await readFile(join(folder, file), 'utf8')) as Json;
    await writeFile(join(folder, file), JSON.stringify(change(json) ?? json));
  };

  it('reads special tokens, template and end tokens of the files beside tokenizer.json', async () => {
    await copy('gpt2');
    await edit('tokenizer_config.json', (config) => ({ ...config, chat_template: [{ name: 'default', template: '{{ bos_token }}x' }] }));
    await writeFile(join(folder, 'generation_config.json'), '{"eos_token_id": [4, 5]}');
    for (const path of [folder, join(folder, 'tokenizer.json')]) {
      const tokenizer = await Tokenizer.fromFile(path);
      assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.unkId], [1, 4, 4, 0]);
      assert.deepEqual(tokenizer.eosIds, [4, 5]);
      assert.equal(await tokenizer.applyChatTemplate([{ role: 'user', content: 'y' }], { tokenize: false }), '<s>x');
    }
    await writeFile(join(folder, 'chat_template.jinja'), 'jinja');
    assert.equal((await Tokenizer.fromFile(folder)).chatTemplate, 'jinja');
  });

  it('takes special tokens from special_tokens_map.json, as strings or objects', async () => {
    await copy('gpt2');
    await rm(join(folder, 'tokenizer_config.json'));
    await writeFile(join(folder, 'special_tokens_map.json'), '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}');
    const tokenizer = await Tokenizer.fromFile(folder);
    assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.padId], [1, 2, undefined]);
  });

  it('adds BOS and EOS as tokenizer_config.json says, over what tokenizer.json does', async () => {
    await copy('llama3');
    const ids = async () => (await Tokenizer.fromFile(folder)).encode('the');
    const plain = await (await Tokenizer.fromFile(folder)).encode('the', { addSpecialTokens: false });
    assert.deepEqual(await ids(), [1, ...plain]);
    await edit('tokenizer_config.json', (config) => ({ ...config, add_bos_token: false }));
    assert.deepEqual(await ids(), plain);
    await edit('tokenizer_config.json', (config) => ({ ...config, add_bos_token: true, add_eos_token: true }));
    assert.deepEqual(await ids(), [1, ...plain, 4]);
  });

  it('gives text that starts with BOS exactly one', async () => {
    await copy('llama3');
    await writeFile(join(folder, 'chat_template.jinja'), '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}');
    const tokenizer = await Tokenizer.fromFile(folder);
    const plain = await tokenizer.encode('hello', { addSpecialTokens: false });
    assert.deepEqual(await tokenizer.encode('hello'), [1, ...plain]);
    assert.deepEqual(await tokenizer.encode('<s>hello'), [1, ...plain]);
    assert.deepEqual(await tokenizer.applyChatTemplate([{ role: 'user', content: 'hello' }]), [1, ...plain]);
  });

  it('adds named special tokens that the vocabulary lacks, after it', async () => {
    await copy('gpt2');
    const { vocabSize } = await Tokenizer.fromFile(folder);
    await edit('tokenizer_config.json', (config) => ({ ...config, pad_token: '<pad>', additional_special_tokens: ['<new>'] }));
    const tokenizer = await Tokenizer.fromFile(folder);
    assert.deepEqual([tokenizer.padId, tokenizer.vocabSize], [vocabSize, vocabSize + 2]);
    assert.deepEqual(await tokenizer.encode('<new><pad>'), [vocabSize + 1, vocabSize]);
    assert.equal(tokenizer.decode([vocabSize + 1, vocabSize], { skipSpecialTokens: true }), '');
  });

  it('takes truncation and padding out of tokenizer.json: rows are cut by the data set, and never padded', async () => {
    await copy('gpt2');
    await edit('tokenizer.json', (json) => ({
      ...json,
      truncation: { max_length: 3, stride: 0, strategy: 'LongestFirst', direction: 'Right' },
      padding: { strategy: { Fixed: 9 }, direction: 'Right', pad_to_multiple_of: null, pad_id: 0, pad_type_id: 0, pad_token: '<unk>' },
    }));
    const plain = await (await Tokenizer.fromFile(`${fixtures}gpt2`)).encode('the of and to in is it you');
    assert.deepEqual(await (await Tokenizer.fromFile(folder)).encode('the of and to in is it you'), plain);
  });

  it('saves a folder that gives the same ids, settings and template', async () => {
    const metadata = JSON.parse(await readFile(`${fixtures}gguf/llama-spm.json`, 'utf8')) as Record<string, GgufValue>;
    const built = await Tokenizer.fromGguf({ ...metadata, 'tokenizer.chat_template': '{{ messages[0].content }}' });
    await built.save(folder);
    const loaded = await Tokenizer.fromFile(folder);
    const text = "don't naïve 😀\n  x";
    assert.deepEqual(await loaded.encode(text), await built.encode(text));
    assert.deepEqual(
      [loaded.bosId, loaded.eosId, loaded.unkId, loaded.chatTemplate],
      [built.bosId, built.eosId, built.unkId, built.chatTemplate],
    );
  });

  describe('that are malformed or hostile', () => {
    const broken: Record<string, [(json: Json) => unknown, RegExp]> = {
      'no object': [() => [1], /expected an object/],
      'no model': [(json) => ({ ...json, model: 3 }), /model/],
      'a model of another kind': [(json) => ({ ...json, model: { type: 'Evil', vocab: {} } }), /Evil/],
      'a vocabulary that is a number': [(json) => ({ ...json, model: { type: 'BPE', vocab: 7, merges: [] } }), /vocab/],
      'a negative id': [(json) => ({ ...json, model: { type: 'BPE', vocab: { a: -1 }, merges: [] } }), /-1/],
      'an id that would make a huge table': [(json) => ({ ...json, model: { type: 'BPE', vocab: { a: 4e9 }, merges: [] } }), /4000000000/],
      'merges of unknown tokens': [
        (json) => ({ ...json, model: { type: 'BPE', vocab: { a: 0 }, merges: [['x', 'y']] } }),
        /tokenizer\.json/,
      ],
      'added tokens that are no list': [(json) => ({ ...json, added_tokens: { a: 1 } }), /added_tokens/],
      'an added token without content': [(json) => ({ ...json, added_tokens: [{ id: 1 }] }), /added token 0/],
      'an evil pattern': [
        (json) => ({ ...json, pre_tokenizer: { type: 'Split', pattern: { Regex: '(a+)+$' }, behavior: 'Isolated', invert: false } }),
        /\(a\+\)\+\$/,
      ],
      'an evil pattern in a normalizer': [
        (json) => ({ ...json, normalizer: { type: 'Replace', pattern: { Regex: '(x+x+)+y' }, content: '' } }),
        /pattern/,
      ],
      'an unknown charsmap': [(json) => ({ ...json, normalizer: { type: 'Precompiled', precompiled_charsmap: 'AAAA' } }), /charsmap/],
      'an unknown pre-tokenizer': [(json) => ({ ...json, pre_tokenizer: { type: 'Nope' } }), /tokenizer\.json/],
      'deep nesting': [
        (json) => {
          let part: unknown = { type: 'NFC' };
          for (let i = 0; i < 2000; i++) part = { type: 'Sequence', normalizers: [part] };
          return { ...json, normalizer: part };
        },
        /nested/,
      ],
    };
    for (const [name, [change, pattern]] of Object.entries(broken)) {
      it(`${name} gives INVALID_TOKENIZER`, async () => {
        await copy('gpt2');
        await edit('tokenizer.json', change);
        await assert.rejects(Tokenizer.fromFile(folder), failsWith('INVALID_TOKENIZER', pattern));
      });
    }

    it('text that is not JSON gives INVALID_TOKENIZER, brackets without end too', async () => {
      await writeFile(join(folder, 'tokenizer_config.json'), '{}');
      for (const text of ['', '{', 'null', '['.repeat(1_000_000), '{"model":'.repeat(100_000)]) {
        await writeFile(join(folder, 'tokenizer.json'), text);
        await assert.rejects(Tokenizer.fromFile(folder), failsWith('INVALID_TOKENIZER', /tokenizer\.json/));
      }
    });

    it('a broken tokenizer_config.json is named', async () => {
      await copy('gpt2');
      await writeFile(join(folder, 'tokenizer_config.json'), '{"bos_token": 5}');
      await assert.rejects(Tokenizer.fromFile(folder), failsWith('INVALID_TOKENIZER', /bos_token is 5/));
      await writeFile(join(folder, 'tokenizer_config.json'), '{"bos_token"');
      await assert.rejects(Tokenizer.fromFile(folder), failsWith('INVALID_TOKENIZER', /tokenizer_config\.json/));
    });

    it('a missing file is FILE_NOT_FOUND', async () => {
      await assert.rejects(Tokenizer.fromFile(join(folder, 'none')), failsWith('FILE_NOT_FOUND', /none/));
      await assert.rejects(Tokenizer.fromFile(folder), failsWith('FILE_NOT_FOUND', /no tokenizer\.json/));
    });

    it('GGUF metadata that does not fit together is INVALID_TOKENIZER', async () => {
      const bpe = JSON.parse(await readFile(`${fixtures}gguf/gpt-2.json`, 'utf8')) as Record<string, GgufValue>;
      const spm = JSON.parse(await readFile(`${fixtures}gguf/llama-spm.json`, 'utf8')) as Record<string, GgufValue>;
      const key = (name: string) => `tokenizer.ggml.${name}`;
      const cases: [Record<string, GgufValue>, RegExp][] = [
        [{ ...bpe, [key('pre')]: 'martian' }, /martian/],
        [{ ...bpe, [key('pre')]: '__proto__' }, /__proto__/],
        [{ ...bpe, [key('model')]: 'bert' }, /bert/],
        [{ ...bpe, [key('tokens')]: 'x' }, /tokens/],
        [{ ...bpe, [key('tokens')]: [1, 2] }, /tokens/],
        [{ ...bpe, [key('token_type')]: [1] }, /token_type/],
        [{ ...bpe, [key('merges')]: ['ab'] }, /merge 0/],
        [{ ...bpe, [key('merges')]: ['zzz yyy'] }, /GGUF/],
        [{ ...bpe, [key('eos_token_id')]: 1e6 }, /eos_token_id/],
        [{ ...spm, [key('scores')]: [1] }, /scores/],
        [{ ...spm, [key('scores')]: (spm[key('scores')] as number[]).map(() => Number.NaN) }, /scores/],
        [Object.fromEntries(Object.entries(spm).filter(([name]) => name !== key('scores'))), /scores/],
      ];
      for (const [metadata, pattern] of cases) await assert.rejects(Tokenizer.fromGguf(metadata), failsWith('INVALID_TOKENIZER', pattern));
    });
  });

  it('answers options under other names with the right one, and values that are none with what was expected', async () => {
    const tokenizer = await Tokenizer.fromFile(`${fixtures}gpt2`);
    const messages = [{ role: 'user', content: 'x' }];
    await assert.rejects(
      tokenizer.encode('x', { add_special_tokens: false } as never),
      failsWith('UNKNOWN_OPTION', /did you mean 'addSpecialTokens'/),
    );
    await assert.rejects(
      tokenizer.applyChatTemplate(messages, { add_generation_prompt: true } as never),
      failsWith('UNKNOWN_OPTION', /addGenerationPrompt/),
    );
    await assert.rejects(tokenizer.applyChatTemplate(messages), failsWith('INVALID_TEMPLATE', /no chat template/));
    await assert.rejects(tokenizer.applyChatTemplate([]), failsWith('INVALID_OPTION', /found \[\]/));
    await assert.rejects(tokenizer.encode(5 as never), failsWith('INVALID_OPTION', /found 5/));
    assert.throws(() => tokenizer.decode([1], { skip_special_tokens: true } as never), failsWith('UNKNOWN_OPTION', /skipSpecialTokens/));
    for (const id of [-1, 1.5, Number.NaN]) assert.throws(() => tokenizer.decode([id]), failsWith('INVALID_OPTION', /token ids/));
    assert.equal(tokenizer.decode([1_000_000]), '');
    tokenizer.dispose();
    await assert.rejects(tokenizer.encode('x'), failsWith('INVALID_TOKENIZER', /disposed/));
  });

  it('accepts the patterns of published tokenizers and no evil ones', () => {
    const published = [
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
      ' ?[^(\\s|[.,!?…。，、।۔،])]+',
      '\\p{N}{1,3}',
      '[一-龥\u3040-ゟ゠-ヿ]+',
      '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
      ' {2,}',
      '\\s?\\p{L}+',
    ];
    for (const pattern of published) assert.ok(isSafePattern(pattern), pattern);
    const evil = [
      '(a+)+$',
      '(a|a)*b',
      '(x+x+)+y',
      '([a-z]+)*!',
      '\\s*\\s*\\s*x',
      'a*a*b',
      '(?=a+)b',
      '(.)\\1',
      '[a',
      'a)',
      '',
      'x+$',
      `a${'?'.repeat(3)}b+c`,
    ];
    for (const pattern of evil) assert.ok(!isSafePattern(pattern), pattern);
  });

  it("gives the real model's ids from its GGUF file, and never holds the event loop while it is built", async function () {
    this.timeout(600_000);
    const metadata = native()
      .openTensorFile(await fetchSmolLm2())
      .metadata();
    let longest = 0;
    let last = performance.now();
    const timer = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 1);
    const tokenizer = await Tokenizer.fromGguf(metadata);
    clearInterval(timer);
    const read = async (name: string) => JSON.parse(await readFile(fixtures + name, 'utf8')) as unknown[];
    const encoded = await tokenizer.encodeBatch((await read('nasty.json')) as string[]);
    assert.deepEqual(
      encoded.map(({ ids }) => Array.from(ids)),
      await read('smollm2-ids.json'),
    );
    assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.vocabSize], [1, 2, 2, 49152]);
    // The goal is 20 ms; a test machine that does other work at the same time gets some more.
    assert.ok(longest < 100, `held for ${longest} ms`);
  });
});
