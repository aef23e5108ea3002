import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { makeBatch } from '../lib/data/batch.ts';
import { type Dataset, splitDataset } from '../lib/data/dataset.ts';
import { loadDataset } from '../lib/data/load.ts';
import type { LoadDatasetOptions } from '../lib/data/load_options.ts';
import { packLengths } from '../lib/data/packing.ts';
import { permutation } from '../lib/data/shuffle.ts';
import { LowrankError } from '../lib/errors.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';

const fixtures = fileURLToPath(new URL('./fixtures/text/', import.meta.url));
const CHATML =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const failsWith = (code: string, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof LowrankError, String(error));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, pattern);
  return true;
};

describe('data sets', () => {
  let folder: string;
  let tokenizer: Tokenizer;
  /** A tokenizer without a chat template that adds BOS. */
  let plain: Tokenizer;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lowrank-data-'));
    const { cp } = await import('node:fs/promises');
    await cp(`${fixtures}smollm`, join(folder, 'chat'), { recursive: true });
    await writeFile(join(folder, 'chat', 'chat_template.jinja'), CHATML);
    tokenizer = await Tokenizer.fromFile(join(folder, 'chat'));
    plain = await Tokenizer.fromFile(`${fixtures}llama3`);
  });
  after(() => rm(folder, { recursive: true }));

  const warnings: string[] = [];
  beforeEach(() => warnings.splice(0));
  const load = (source: Parameters<typeof loadDataset>[0], options: LoadDatasetOptions = {}) =>
    loadDataset(source, { tokenizer, onWarning: (message) => warnings.push(message), ...options });
  const file = async (name: string, content: string | Uint8Array) => {
    await writeFile(join(folder, name), content);
    return join(folder, name);
  };
  /** Text of what a row trains on, and of the whole row. */
  const trained = (dataset: Dataset, index = 0, by = tokenizer) => {
    const { inputIds, labels } = dataset.row(index);
    return by.decode(inputIds.filter((id, t) => t > 0 && labels[t] !== -100 && labels[t] === id));
  };
  const whole = (dataset: Dataset, index = 0, by = tokenizer) => by.decode(dataset.row(index).inputIds);
  const chat = (...turns: string[]) => ({ messages: turns.map((content, i) => ({ role: i % 2 ? 'assistant' : 'user', content })) });

  describe('formats', () => {
    it("messages: the template's ids, and loss on the answers with their end", async () => {
      const row = chat('hi', 'Hello 😀!', 'bye', 'see you');
      const dataset = await load([row]);
      assert.deepEqual(Array.from(dataset.row(0).inputIds), await tokenizer.applyChatTemplate(row.messages));
      assert.equal(trained(dataset), 'Hello 😀!<|im_end|>see you<|im_end|>');
    });

    it('messages with completionOnlyLoss false: loss on all', async () => {
      const dataset = await load([chat('hi', 'yo')], { completionOnlyLoss: false });
      assert.equal(trained(dataset), whole(dataset).replace('<|im_start|>', ''));
    });

    it('prompt and completion: one tokenisation of both, BOS once, EOS learned though pad is the same token', async () => {
      for (const prompt of ['The word is', '<s>The word is']) {
        const dataset = await load([{ prompt, completion: ' hot.' }], { tokenizer: plain });
        assert.equal(whole(dataset, 0, plain), '<s>The word is hot.<|im_end|>');
        assert.equal(trained(dataset, 0, plain), ' hot.<|im_end|>');
        assert.equal(plain.padId, plain.eosId);
        const text = await plain.encode('The word is hot.');
        assert.deepEqual(Array.from(dataset.row(0).inputIds), [...text, plain.eosId]);
      }
    });

    it('prompt and completion of messages: loss on the completion alone', async () => {
      const [a, b, c, d] = chat('a', 'first', 'b', 'second').messages;
      const dataset = await load([{ prompt: [a, b, c], completion: [d] }]);
      assert.equal(trained(dataset), 'second<|im_end|>');
    });

    it('a token on the seam between prompt and completion is learned', async () => {
      const dataset = await load([{ prompt: 'the wor', completion: 'd is' }], { tokenizer: plain });
      const { inputIds, labels } = dataset.row(0);
      const text = await plain.encode('the word is');
      assert.deepEqual(Array.from(inputIds.subarray(0, -1)), text);
      const offsets = (await plain.encodeBatch(['the word is'], { offsets: true }))[0]?.offsets as Int32Array;
      for (const [t, id] of text.entries()) assert.equal(labels[t], (offsets[2 * t + 1] as number) > 7 ? id : -100);
    });

    it('text: loss on all, EOS at the end once; strings are text', async () => {
      const dataset = await load([{ text: 'some words' }, { text: 'some words<|im_end|>' }], { tokenizer: plain });
      for (const i of [0, 1]) assert.equal(whole(dataset, i, plain), '<s>some words<|im_end|>');
      assert.equal(trained(dataset, 0, plain), 'some words<|im_end|>');
      assert.equal(whole(await load(['some words'], { tokenizer: plain }), 0, plain), '<s>some words<|im_end|>');
      await assert.rejects(load([{ text: 'x' }], { completionOnlyLoss: true }), failsWith('INVALID_DATASET', /row 0: completionOnlyLoss/));
    });

    it('Alpaca: as a conversation where there is a template, else by its own prompt', async () => {
      const row = { instruction: 'Add.', input: '1 2', output: '3' };
      const dataset = await load([row, { instruction: 'Say x.', input: '', output: 'x' }]);
      assert.equal(whole(dataset), '<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n');
      assert.equal(trained(dataset), '3<|im_end|>');
      const other = await load([row, { instruction: 'Say x.', output: 'x' }], { tokenizer: plain });
      assert.match(whole(other, 0, plain), /further context.*### Instruction:\nAdd\.\n\n### Input:\n1 2\n\n### Response:\n3<\|im_end\|>$/s);
      assert.equal(trained(other, 1, plain), 'x<|im_end|>');
    });

    it('ShareGPT: from and value become roles', async () => {
      const dataset = await load([
        {
          system: 'S',
          conversations: [
            { from: 'human', value: 'q' },
            { from: 'gpt', value: 'a' },
          ],
        },
      ]);
      assert.equal(whole(dataset), '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n');
      assert.equal(trained(dataset), 'a<|im_end|>');
    });

    it('token rows: as they are, by either name; padding is told by the attention mask', async () => {
      const dataset = await load(
        [
          { inputIds: [5, 6, 7], labels: [-100, 6, 7] },
          { input_ids: new Int32Array([5, 6]) },
          { input_ids: [5, 6, 4, 4], attention_mask: [1, 1, 1, 0], labels: [-100, 6, 4, -100] },
        ],
        { tokenizer: undefined },
      );
      const rows = [];
      for await (const row of dataset) rows.push(row);
      assert.deepEqual(rows, [
        { inputIds: [5, 6, 7], labels: [-100, 6, 7] },
        { inputIds: [5, 6], labels: [5, 6] },
        { inputIds: [5, 6, 4], labels: [-100, 6, 4] },
      ]);
    });

    it('columns of other names by mapping', async () => {
      const dataset = await load([{ question: 'Q: x A:', answer: ' y' }], { mapping: { prompt: 'question', completion: 'answer' } });
      assert.equal(trained(dataset), ' y<|im_end|>');
    });
  });

  describe('sources', () => {
    const expected = ['one', 'two\u2028still two', 'three'];
    const jsonl = `\uFEFF${expected.map((text) => JSON.stringify({ text })).join('\r\n\n  \n')}\n`.replace('\\u2028', '\u2028');
    const texts = async (source: Parameters<typeof loadDataset>[0]) => {
      const dataset = await load(source);
      return Array.from({ length: dataset.length }, (_, i) => whole(dataset, i).replace('<|im_end|>', ''));
    };

    it('JSONL with a byte order mark, CRLF, blank lines and U+2028 within a string', async () => {
      assert.ok(jsonl.includes('\u2028'));
      assert.deepEqual(await texts(await file('a.jsonl', jsonl)), expected);
      assert.deepEqual(await texts(await file('no-end.jsonl', jsonl.trimEnd())), expected);
    });

    it('JSON: a list, however it is laid out, or values one after another', async () => {
      const rows = expected.map((text) => ({ text, other: ['],[', { deep: '\\"}' }] }));
      assert.deepEqual(await texts(await file('a.json', JSON.stringify(rows))), expected);
      assert.deepEqual(await texts(await file('b.json', JSON.stringify(rows, null, 2))), expected);
      assert.deepEqual(await texts(await file('c.json', rows.map((row) => JSON.stringify(row, null, 1)).join('\n'))), expected);
    });

    it('CSV and TSV with a header', async () => {
      assert.deepEqual(await texts(await file('a.csv', 'id,text\n1,one\n2,"two, ""still""\ntwo"\n')), ['one', 'two, "still"\ntwo']);
      assert.deepEqual(await texts(await file('a.tsv', 'text\tid\none\t1\n')), ['one']);
    });

    it('gzip and zstandard', async () => {
      assert.deepEqual(await texts(await file('a.jsonl.gz', gzipSync(jsonl))), expected);
      // One frame with one raw block: magic, descriptor with the content's size, block header, bytes.
      const bytes = Buffer.from('{"text":"one"}\n');
      const frame = Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x20, bytes.length, (bytes.length << 3) | 1, 0, 0]), bytes]);
      assert.deepEqual(await texts(await file('a.jsonl.zst', frame)), ['one']);
      await assert.rejects(load(await file('bad.jsonl.gz', 'no gzip')), failsWith('INVALID_DATASET', /bad\.jsonl\.gz/));
      await assert.rejects(
        load(await file('cut.jsonl.gz', gzipSync(jsonl).subarray(0, 30))),
        failsWith('INVALID_DATASET', /cut\.jsonl\.gz/),
      );
      await assert.rejects(load(await file('bad.jsonl.zst', 'no zstd at all')), failsWith('INVALID_DATASET', /bad\.jsonl\.zst/));
    });

    it('a pattern names several files, in order', async () => {
      await file('part-2.jsonl', '{"text":"two"}');
      await file('part-1.jsonl', '{"text":"one"}');
      await file('part-3.json', '[{"text":"three"}]');
      assert.deepEqual(await texts(join(folder, 'part-*.jsonl')), ['one', 'two']);
      assert.deepEqual(await texts(join(folder, '**', 'part-?.{json,jsonl}')), ['one', 'two', 'three']);
      await assert.rejects(load(join(folder, 'none-*.jsonl')), failsWith('FILE_NOT_FOUND', /none-/));
    });

    it('iterables, async ones too, and a Dataset', async () => {
      async function* rows() {
        yield { text: 'one' };
        yield { text: 'two' };
      }
      assert.deepEqual(await texts(rows()), ['one', 'two']);
      assert.deepEqual(await texts(new Set([{ text: 'one' }])), ['one']);
      const again = await loadDataset(await load([{ text: 'some words' }]));
      assert.equal(whole(again), 'some words<|im_end|>');
    });

    it('what is no source is refused', async () => {
      await assert.rejects(load(join(folder, 'none.jsonl')), failsWith('FILE_NOT_FOUND', /none\.jsonl/));
      await assert.rejects(load(folder), failsWith('INVALID_DATASET', /folder/));
      await assert.rejects(load(await file('a.docx', 'x')), failsWith('INVALID_DATASET', /docx/));
      await assert.rejects(load(7 as never), failsWith('INVALID_DATASET', /7/));
    });
  });

  describe('bad rows', () => {
    const lines = [
      '{"prompt":"a","completion":"b"}',
      '{"prompt":"a"',
      '{"prompt":"a"}',
      '{"text":"a"}',
      '{"prompt":1,"completion":"b"}',
      '[1]',
      '{"prompt":"c","completion":"d"}',
    ];

    it('are named by file and line with what was found', async () => {
      const messages: [number, RegExp][] = [
        [1, /bad\.jsonl:2: not JSON/],
        [2, /bad\.jsonl:2: found keys "prompt"; expected \{ prompt, completion \}/],
        [3, /bad\.jsonl:2: found keys "text"; expected \{ prompt, completion \}/],
        [4, /bad\.jsonl:2: prompt is 1, expected a string/],
        [5, /bad\.jsonl:2: found \[1\], expected an object/],
      ];
      for (const [line, pattern] of messages) {
        const path = await file('bad.jsonl', `${lines[0]}\n${lines[line]}\n`);
        await assert.rejects(load(path), failsWith('INVALID_DATASET', pattern));
      }
      await assert.rejects(
        load(await file('bad.json', '[\n{"text":"a"},\n\n{"text":\n5}]')),
        failsWith('INVALID_DATASET', /bad\.json:4: text is 5/),
      );
      await assert.rejects(
        load(await file('open.json', '[{"text":"a"}')),
        failsWith('INVALID_DATASET', /open\.json:1: the list is not closed/),
      );
      await assert.rejects(load(await file('odd.csv', 'text,b\n1,2\n"x')), failsWith('INVALID_DATASET', /odd\.csv:3/));
      await assert.rejects(
        load(await file('latin.jsonl', Buffer.from([0x7b, 0xe9, 0x7d]))),
        failsWith('INVALID_DATASET', /latin\.jsonl:1: not UTF-8/),
      );
      await assert.rejects(load([{ text: 'a' }, null]), failsWith('INVALID_DATASET', /row 1: found null/));
    });

    it('with keys that fit no format tell the shapes that are known', async () => {
      await assert.rejects(
        load([{ question: 'x', answer: 'y' }]),
        failsWith('INVALID_DATASET', /row 0: found keys "question", "answer"; expected one of .*\{ prompt, completion \}.*mapping/),
      );
      await assert.rejects(load([{ a: 1 }], { mapping: { text: 'b' } }), failsWith('INVALID_DATASET', /mapping takes text from "b"/));
    });

    it('are skipped and counted when asked', async () => {
      const dataset = await load(await file('bad.jsonl', lines.join('\n')), { onBadRow: 'skip' });
      assert.equal(dataset.length, 2);
      assert.equal(dataset.stats().skippedRows, 5);
      assert.match(dataset.stats().skipped[0] as string, /bad\.jsonl:2: not JSON/);
      assert.match(warnings.join(), /7 rows, 5 malformed and skipped/);
    });

    it('of conversations that the template refuses are named too', async () => {
      const { messages } = chat('a', 'b');
      const rows = [
        { messages },
        { messages: [{ role: 'user', content: { no: 'text' } }] },
        { messages: [] },
        { messages: [{ content: 'x' }] },
      ];
      for (const [i, pattern] of [
        [1, /content is/],
        [2, /messages is \[\]/],
        [3, /messages\[0\]/],
      ] as [number, RegExp][]) {
        await assert.rejects(load([rows[0], rows[i]]), failsWith('INVALID_DATASET', pattern));
      }
      await assert.rejects(load([{ messages: [{ role: 'user' }] }]), failsWith('INVALID_TEMPLATE', /row 0: the chat template failed/));
      await assert.rejects(load([{ conversations: [{ from: 'alien', value: 'x' }] }]), failsWith('INVALID_DATASET', /"alien"/));
    });

    it('of token ids: out of the vocabulary, no integers, labels of another length', async () => {
      const bad: [object, RegExp][] = [
        [{ inputIds: [1, 99999] }, /99999/],
        [{ inputIds: [1, 1.5] }, /inputIds\[1\] is 1\.5/],
        [{ inputIds: [1, -1] }, /inputIds\[1\]/],
        [{ inputIds: [] }, /empty/],
        [{ inputIds: [1, 2], labels: [1] }, /labels has 1/],
        [{ inputIds: [1, 2], labels: [1, -7] }, /-7/],
        [{ inputIds: 'x' }, /inputIds is "x"/],
      ];
      for (const [row, pattern] of bad) await assert.rejects(load([row]), failsWith('INVALID_DATASET', pattern));
    });
  });

  describe('length', () => {
    const long = { prompt: 'word '.repeat(20), completion: ' the of and to in' };

    it('rows that lose all they train on are dropped, counted and warned of; when none is left it is an error', async () => {
      await assert.rejects(load([long], { maxSeqLength: 8 }), failsWith('INVALID_DATASET', /no row is left.*1 dropped/));
      const dataset = await load([long, { prompt: 'a', completion: 'b' }], { maxSeqLength: 8 });
      const { rows, truncatedRows, droppedRows, lostTokens } = dataset.stats();
      assert.deepEqual({ rows, truncatedRows, droppedRows }, { rows: 1, truncatedRows: 1, droppedRows: 1 });
      const all = await load([long]);
      assert.equal(lostTokens, all.stats().supervisedTokens);
      assert.match(warnings.join(), /1 longer than maxSeqLength 8 \(\d+ supervised tokens lost\), 1 dropped/);
    });

    it('splits a row into very many pieces', async () => {
      const inputIds = Array.from({ length: 400_000 }, (_, i) => i % 50);
      const dataset = await loadDataset([{ inputIds }], { maxSeqLength: 2, truncation: 'split', onWarning: () => undefined });
      assert.equal(dataset.length, 200_000);
    });

    it('policies: right, left, drop, split', async () => {
      const full = Array.from((await load([long])).row(0).inputIds);
      const rowsOf = async (truncation: LoadDatasetOptions['truncation']) => {
        const dataset = await load([long, { prompt: 'a', completion: 'b' }], { maxSeqLength: 24, truncation });
        return Array.from({ length: dataset.length - 1 }, (_, i) => Array.from(dataset.row(i).inputIds));
      };
      assert.ok(full.length > 24 && full.length < 48);
      assert.deepEqual(await rowsOf('right'), [full.slice(0, 24)]);
      assert.deepEqual(await rowsOf('left'), [full.slice(-24)]);
      assert.deepEqual(await rowsOf('drop'), []);
      const split = await load([{ text: long.prompt + long.completion }], { maxSeqLength: 10, truncation: 'split' });
      const pieces = Array.from({ length: split.length }, (_, i) => Array.from(split.row(i).inputIds));
      assert.ok(pieces.every((piece) => piece.length <= 10));
      assert.deepEqual(pieces.flat(), full);
    });

    it('conversations without an answer have nothing to train on', async () => {
      await assert.rejects(load([{ messages: [{ role: 'user', content: 'x' }] }]), failsWith('INVALID_DATASET', /no row is left/));
    });

    it('no rows at all are an error', async () => {
      await assert.rejects(load([]), failsWith('INVALID_DATASET', /no row is left to train on: 0 rows/));
      await assert.rejects(load(await file('empty.jsonl', '')), failsWith('INVALID_DATASET', /0 rows/));
    });
  });

  it('options are checked by name and value', async () => {
    const bad: [object, string, RegExp][] = [
      [{ max_seq_length: 5 }, 'UNKNOWN_OPTION', /max_seq_length is not an option; did you mean 'maxSeqLength'/],
      [{ maxSeqLength: 0 }, 'INVALID_OPTION', /maxSeqLength: found 0, expected at least 2/],
      [{ onBadRow: 'ignore' }, 'INVALID_OPTION', /onBadRow: found "ignore", expected one of 'error', 'skip'/],
      [{ format: 'parrot' }, 'INVALID_OPTION', /format: found "parrot"/],
      [{ completionOnlyLoss: 'yes' }, 'INVALID_OPTION', /completionOnlyLoss: found "yes"/],
      [{ tokenizer: {} }, 'INVALID_OPTION', /tokenizer: found \{\}, expected a Tokenizer/],
      [{ tokenizer: undefined }, 'INVALID_OPTION', /tokenizer is needed/],
    ];
    for (const [options, code, pattern] of bad) await assert.rejects(load(['x'], options as LoadDatasetOptions), failsWith(code, pattern));
    await assert.rejects(load([chat('a', 'b')], { tokenizer: plain }), failsWith('INVALID_TEMPLATE', /no chat template/));
  });

  it('a signal stops it', async () => {
    const controller = new AbortController();
    async function* endless() {
      for (let i = 0; ; i++) {
        if (i === 500) controller.abort();
        yield { text: `row ${i}` };
      }
    }
    await assert.rejects(load(endless(), { signal: controller.signal }), failsWith('ABORTED', /aborted/));
  });

  it('rows keep their order, and the event loop is free meanwhile', async () => {
    const rows = Array.from({ length: 3000 }, (_, i) => chat(`question ${i}`, `answer ${i} `.repeat(1 + (i % 40))));
    let turns = 0;
    const timer = setInterval(() => turns++, 5);
    const before = performance.now();
    const dataset = await load(rows);
    clearInterval(timer);
    for (const i of [0, 1, 63, 64, 65, 1500, 2999]) assert.match(whole(dataset, i), new RegExp(`question ${i}<.*answer ${i} `, 's'));
    assert.ok(turns > (performance.now() - before) / 50, `${turns} turns of a 5 ms timer in ${performance.now() - before} ms`);
  });

  it('explain marks what is trained on', async () => {
    const dataset = await load([chat('hi', 'é😀')]);
    const lines = dataset.explain(0).split('\n');
    assert.match(lines[0] as string, /^\d+ tokens, \d+ trained on/);
    assert.equal(
      lines
        .filter((line) => line.startsWith('▸'))
        .map((line) => line.slice(2).replaceAll('¦', ''))
        .join(),
      'é😀<|im_end|>',
    );
    for await (const row of dataset) assert.equal(dataset.explain(row), dataset.explain(0));
    assert.throws(() => dataset.explain('0' as unknown as number), failsWith('INVALID_OPTION', /explain: found "0"/));
    assert.throws(() => dataset.explain(1), failsWith('INVALID_OPTION', /row 1 does not exist/));
  });

  describe('order, split and packing', () => {
    it('permutation depends on seed and epoch alone', () => {
      const order = permutation(1000, 7, 3);
      assert.deepEqual(
        Array.from(order).sort((a, b) => a - b),
        Array.from({ length: 1000 }, (_, i) => i),
      );
      assert.deepEqual(order, permutation(1000, 7, 3));
      for (const [seed, epoch] of [
        [7, 4],
        [8, 3],
        [7 + 2 ** 32, 3],
      ] as const)
        assert.notDeepEqual(order, permutation(1000, seed, epoch));
      assert.deepEqual([permutation(0, 1, 1).length, permutation(1, 1, 1)[0]], [0, 0]);
      // Every place is as likely as any other: chi-squared of where row 0 goes, 7 degrees of freedom, far beyond the 99.9th percentile (24.3).
      const counts = new Array<number>(8).fill(0);
      for (let seed = 0; seed < 8000; seed++) counts[permutation(8, seed, 0).indexOf(0)]!++;
      const chi = counts.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
      assert.ok(chi < 40, String(counts));
    });

    it('splitDataset gives two parts that share nothing', async () => {
      const dataset = await load(Array.from({ length: 20 }, (_, i) => ({ inputIds: [i, i] })));
      const ids = (part: Dataset) => Array.from({ length: part.length }, (_, i) => part.row(i).inputIds[0] as number);
      const { train, test } = splitDataset(dataset, { testSize: 0.25, seed: 1 });
      assert.deepEqual([train.length, test.length], [15, 5]);
      assert.deepEqual(
        [...ids(train), ...ids(test)].sort((a, b) => a - b),
        Array.from({ length: 20 }, (_, i) => i),
      );
      assert.deepEqual(ids(splitDataset(dataset, { testSize: 5, seed: 1 }).test), ids(test));
      assert.notDeepEqual(ids(splitDataset(dataset, { testSize: 5, seed: 2 }).test), ids(test));
      for (const testSize of [0, 20, -1, 0.5001 * 100])
        assert.throws(() => splitDataset(dataset, { testSize, seed: 1 }), failsWith('INVALID_OPTION', /testSize/));
    });

    it('packing fills groups without cutting a row', () => {
      assert.deepEqual(packLengths([5, 3, 2, 5, 4, 1], 5), [[0], [3], [4, 5], [1, 2]]);
      const seed = Math.floor(Math.random() * 1e6);
      const lengths = Array.from(permutation(2000, seed, 0), (value) => 1 + (value % 700));
      const groups = packLengths(lengths, 700);
      assert.deepEqual(
        groups.flat().sort((a, b) => a - b),
        lengths.map((_, i) => i),
        `seed ${seed}`,
      );
      const sums = groups.map((group) => group.reduce((sum, i) => sum + (lengths[i] as number), 0));
      assert.ok(
        sums.every((sum) => sum <= 700),
        `seed ${seed}`,
      );
      const total = lengths.reduce((sum, length) => sum + length, 0);
      assert.ok(groups.length < 1.05 * Math.ceil(total / 700) + 1, `${groups.length} groups, seed ${seed}`);
      assert.deepEqual(packLengths([], 4), []);
      assert.throws(() => packLengths([5], 4), failsWith('INVALID_OPTION', /row 0 has 5 tokens/));
    });

    it('a batch has positions and targets of each row by itself', () => {
      const row = (inputIds: number[], labels: number[]) => ({ inputIds: Int32Array.from(inputIds), labels: Int32Array.from(labels) });
      const batch = makeBatch([row([1, 2, 3], [-100, 2, 3]), row([9], [9]), row([4, 5], [4, -100])]);
      assert.deepEqual(Array.from(batch.ids), [1, 2, 3, 9, 4, 5]);
      assert.deepEqual(Array.from(batch.positions), [0, 1, 2, 0, 0, 1]);
      assert.deepEqual(Array.from(batch.starts), [0, 3, 4, 6]);
      assert.deepEqual(Array.from(batch.targets), [2, 3, -100, -100, -100, -100]);
      assert.throws(() => makeBatch([row([], [])]), failsWith('SHAPE_MISMATCH', /row 0/));
      assert.throws(() => makeBatch([row([1, 2], [1])]), failsWith('SHAPE_MISMATCH', /row 0/));
    });
  });
});
