import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { GgufValue } from '../lib/native.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';

interface Reference {
  ids: number[];
  special: number[];
  offsets: number[];
  text: string;
  skipped: string;
}

const folder = fileURLToPath(new URL('./fixtures/text/', import.meta.url));
const json = <T>(name: string): T => JSON.parse(readFileSync(folder + name, 'utf8')) as T;
const texts = json<string[]>('nasty.json');

describe('tokenizer', () => {
  for (const [name, references] of Object.entries(json<Record<string, Reference[]>>('expected.json'))) {
    describe(name, () => {
      let tokenizer: Tokenizer;
      before(async () => {
        tokenizer = await Tokenizer.fromFile(folder + name);
      });

      it("gives the Python library's ids and offsets for nasty texts", async () => {
        const plain = await tokenizer.encodeBatch(texts, { addSpecialTokens: false, offsets: true });
        references.forEach((reference, i) => {
          assert.deepEqual(Array.from(plain[i]?.ids ?? []), reference.ids, `ids of ${JSON.stringify(texts[i])}`);
          assert.deepEqual(Array.from(plain[i]?.offsets ?? []), reference.offsets, `offsets of ${JSON.stringify(texts[i])}`);
        });
      });

      it('adds special tokens as the Python library does, but never a second BOS', async () => {
        const special = await tokenizer.encodeBatch(texts);
        references.forEach((reference, i) => {
          const [first, second] = reference.special;
          const doubled = first === tokenizer.bosId && second === tokenizer.bosId;
          assert.deepEqual(
            Array.from(special[i]?.ids ?? []),
            doubled ? reference.special.slice(1) : reference.special,
            JSON.stringify(texts[i]),
          );
        });
      });

      it('decodes as the Python library does, at once and id by id', () => {
        for (const { ids, text, skipped } of references) {
          assert.equal(tokenizer.decode(ids), text);
          assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), skipped);
          const stream = tokenizer.streamDecoder({ skipSpecialTokens: false });
          const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
          assert.equal(pieces.join(''), text, JSON.stringify(ids));
        }
      });
    });
  }

  describe('from GGUF metadata', () => {
    type Entry = Pick<Reference, 'ids' | 'special' | 'text'>;
    for (const [name, references] of Object.entries(json<Record<string, Entry[]>>('gguf-expected.json'))) {
      it(`gives the ids of the reference for ${name}`, async () => {
        const tokenizer = await Tokenizer.fromGguf(json<Record<string, GgufValue>>(`gguf/${name}.json`));
        const plain = await tokenizer.encodeBatch(texts, { addSpecialTokens: false });
        references.forEach(({ ids, text }, i) => {
          assert.deepEqual(Array.from(plain[i]?.ids ?? []), ids, JSON.stringify(texts[i]));
          assert.equal(tokenizer.decode(ids), text, JSON.stringify(texts[i]));
        });
      });
    }

    it("gives sentencepiece's own ids for text that holds no special token", async () => {
      const metadata = json<Record<string, GgufValue>>('gguf/llama-spm.json');
      const tokenizer = await Tokenizer.fromGguf(metadata);
      const expected = json<number[][]>('sentencepiece.json');
      const specials = (metadata['tokenizer.ggml.tokens'] as string[]).filter((token) => /^<.*>$/.test(token));
      let compared = 0;
      for (const [i, text] of texts.entries()) {
        // The Python library puts no prefix space before a leading one; sentencepiece does.
        if (text === '' || /^[ \u2581]/.test(text) || specials.some((token) => text.includes(token))) continue;
        assert.deepEqual(await tokenizer.encode(text, { addSpecialTokens: false }), expected[i], JSON.stringify(text));
        compared++;
      }
      assert.ok(compared > 80);
    });

    it('reads special ids and adds BOS where the file or the kind says so', async () => {
      const metadata = json<Record<string, GgufValue>>('gguf/llama-spm.json');
      const { 'tokenizer.ggml.add_bos_token': _, ...silent } = metadata;
      for (const given of [metadata, silent]) {
        const tokenizer = await Tokenizer.fromGguf({ ...given, 'tokenizer.ggml.eot_token_id': 4 });
        assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.eosIds, tokenizer.padId], [1, 2, [2, 4], undefined]);
        assert.equal((await tokenizer.encode('the'))[0], 1);
      }
      const off = await Tokenizer.fromGguf({ ...metadata, 'tokenizer.ggml.add_bos_token': false });
      assert.notEqual((await off.encode('the'))[0], 1);
    });
  });
});
