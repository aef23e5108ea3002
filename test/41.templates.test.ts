import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { labelsOfSpans } from '../lib/data/truncation.ts';
import { LowrankError } from '../lib/errors.ts';
import { ChatTemplate } from '../lib/tokenizer/chat_template.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import type { Message } from '../lib/types.ts';

interface Case {
  template: string;
  conversation: string;
  tools: unknown[] | null;
  prompt: boolean;
  text?: string;
  /** What the marked twin of the template marks. */
  spans?: [number, number][];
  ids?: number[];
  mask?: number[];
  error?: string;
}

interface Fixture {
  templates: Record<string, string>;
  marked: Record<string, string>;
  conversations: Record<string, Message[]>;
  cases: Case[];
}

const folder = fileURLToPath(new URL('./fixtures/text/', import.meta.url));
const fixture = JSON.parse(readFileSync(`${folder}templates.json`, 'utf8')) as Fixture;
const named = { bos_token: '<s>', eos_token: '<|im_end|>', unk_token: '<unk>', pad_token: '<|im_end|>' };
const endTokens = ['<|im_end|>', '<|eot_id|>', '</s>', '<|end|>', '<end_of_turn>'];
const specialTokens = ['<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|eot_id|>'];
const template = (source: string) => new ChatTemplate(source, { named, endTokens, specialTokens });
const source = (name: string) => fixture.templates[name] ?? (fixture.marked[name.replace(/ marked$/, '')] as string);
const failsWith = (code: string, pattern: RegExp) => (error: unknown) =>
  error instanceof LowrankError && error.code === code && pattern.test(error.message);
const user = (content: string): Message => ({ role: 'user', content });
const assistant = (content: string): Message => ({ role: 'assistant', content });

describe('chat templates', () => {
  for (const name of [...Object.keys(fixture.templates), ...Object.keys(fixture.marked).map((key) => `${key} marked`)]) {
    it(`${name} gives Transformers' text, and refuses what it refuses`, async () => {
      for (const item of fixture.cases.filter((entry) => entry.template === name)) {
        const messages = fixture.conversations[item.conversation] as Message[];
        const render = template(source(name)).render({ messages, tools: item.tools ?? undefined }, { addGenerationPrompt: item.prompt });
        if (item.text === undefined) await assert.rejects(render, failsWith('INVALID_TEMPLATE', new RegExp(item.error as string)));
        else assert.equal(await render, item.text, item.conversation);
      }
    });
  }

  for (const name of Object.keys(fixture.marked)) {
    const cases = fixture.cases.filter((item) => item.template === `${name} marked` && item.text !== undefined && !item.prompt);

    it(`${name} with generation blocks gives Transformers' spans and token masks`, async () => {
      const tokenizer = await Tokenizer.fromFile(`${folder}smollm`);
      for (const item of cases) {
        const messages = fixture.conversations[item.conversation] as Message[];
        const [rendered] = await template(source(`${name} marked`)).renderForTraining([{ messages }]);
        assert.ok(rendered && 'spans' in rendered);
        assert.deepEqual(rendered.spans, item.spans, item.conversation);
        const [encoded] = await tokenizer.encodeBatch([rendered.text], { addSpecialTokens: false, offsets: true });
        assert.ok(encoded);
        assert.deepEqual(Array.from(encoded.ids), item.ids);
        const labels = labelsOfSpans(encoded.ids, encoded.offsets, rendered.spans);
        assert.deepEqual(
          Array.from(labels, (label) => Number(label !== -100)),
          item.mask,
          item.conversation,
        );
      }
    });

    it(`${name} without generation blocks has the same spans derived`, async () => {
      for (const item of cases) {
        const messages = fixture.conversations[item.conversation] as Message[];
        const [rendered] = await template(source(name)).renderForTraining([{ messages }]);
        assert.ok(rendered && 'spans' in rendered, String(rendered));
        const texts = (spans: [number, number][]) => spans.map(([start, end]) => rendered.text.slice(start, end));
        // Without a header before the answer nor a character in it, nothing tells where an empty answer stands.
        const expected = name === 'mistral' && item.conversation === 'empty answer' ? [] : (item.spans as [number, number][]);
        assert.deepEqual(texts(rendered.spans), texts(expected), item.conversation);
        assert.deepEqual(rendered.spans, expected, item.conversation);
      }
    });
  }

  describe('what the assistant is to learn', () => {
    const learned = async (name: string, conversation: string) => {
      const [rendered] = await template(source(name)).renderForTraining([{ messages: fixture.conversations[conversation] as Message[] }]);
      assert.ok(rendered && 'spans' in rendered, String(rendered));
      return rendered.spans.map(([start, end]) => rendered.text.slice(start, end));
    };

    it('holds the end-of-turn token', async () => {
      assert.deepEqual(await learned('smollm2', 'two'), ['Hello!<|im_end|>', 'Good bye.<|im_end|>']);
      assert.deepEqual(await learned('phi3', 'two'), ['Hello!<|end|>', 'Good bye.<|end|>']);
      assert.deepEqual(await learned('gemma', 'two'), ['Hello!<end_of_turn>', 'Good bye.<end_of_turn>']);
      assert.deepEqual(await learned('mistral', 'one'), ['Hello! How are you?<|im_end|>']);
    });

    it('holds tool calls', async () => {
      const [call, answer] = await learned('qwen2.5', 'tool');
      assert.equal(call, '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'.slice(1));
      assert.equal(answer, 'It is sunny.<|im_end|>');
    });

    it('is only text that the render holds, where earlier turns are rewritten', async () => {
      assert.deepEqual(await learned('qwen3', 'thinking'), ['2<|im_end|>', '<think>\nstill easy\n</think>\n\n4<|im_end|>']);
    });

    it('covers only the completion when a prompt has answers too', async () => {
      const messages = fixture.conversations.two as Message[];
      for (const name of ['smollm2', 'smollm2 marked']) {
        const [rendered] = await template(source(name)).renderForTraining([{ messages, supervisedFrom: 2 }]);
        assert.ok(rendered && 'spans' in rendered);
        assert.deepEqual(
          rendered.spans.map(([start, end]) => rendered.text.slice(start, end)),
          ['Good bye.<|im_end|>'],
        );
      }
    });

    it('is exact where the template changes the content, and where it only looks at it', async () => {
      const messages = [user('a'), assistant('bye'), user('c'), assistant('dd')];
      const learnedFrom = async (text: string) => {
        const [rendered] = await template(text).renderForTraining([{ messages }]);
        assert.ok(rendered && 'spans' in rendered, String(rendered));
        return rendered.spans.map(([start, end]) => rendered.text.slice(start, end));
      };
      assert.deepEqual(await learnedFrom("{% for m in messages %}{{ m.content | upper | replace('Y', '') }}{% endfor %}"), ['BE', 'DD']);
      assert.deepEqual(await learnedFrom('{% for m in messages %}{{ m.content | length }},{% endfor %}'), ['3,', '2,']);
    });

    it('is refused where it cannot be told', async () => {
      const rewriting = "{{ messages | length }}{% for m in messages %}{% if m.content[0] == 'x' %}{{ m.content }}{% endif %};{% endfor %}";
      const [failed] = await template(rewriting).renderForTraining([{ messages: [user('x'), assistant('xy'), user('z')] }]);
      assert.ok(failed instanceof LowrankError && failed.code === 'INVALID_TEMPLATE' && /generation/.test(failed.message), String(failed));
    });
  });

  describe('that are hostile', () => {
    const messages = [user('hi')];
    const grow = (step: string, rounds: number) =>
      `{% set ns = namespace(v='aaaa', l=[1]) %}{% for i in range(${rounds}) %}{% set ${step} %}{% endfor %}{{ ns.v }}`;
    const hostile: Record<string, [string, RegExp]> = {
      'that do not parse': ['{% if %}', /Unexpected token/],
      'that loop for ever': ['{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}', /more than 1 s/],
      'that write without end': ['{% for a in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}', /characters|more than 1 s/],
      'that make a long range': ['{% for a in range(300000000) %}{% endfor %}', /range is too large/],
      'that double a string': [grow('ns.v = ns.v + ns.v', 60), /failed/],
      'that double a list': [grow('ns.l = ns.l + ns.l', 60), /memory|more than 1 s/],
      'that replace into ever more': [grow("ns.v = ns.v | replace('a', 'aaaa')", 60), /failed/],
      'that recurse': ['{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}', /failed/],
      'that nest deeply': [`{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`, /failed/],
      'that reach for JavaScript': ["{{ messages.constructor.constructor('return process')() }}", /failed/],
      'that raise': ["{{ raise_exception('not this') }}", /not this/],
    };
    for (const [name, [text, pattern]] of Object.entries(hostile)) {
      it(`${name} end in INVALID_TEMPLATE`, async () => {
        const before = performance.now();
        await assert.rejects(template(text).render({ messages }), failsWith('INVALID_TEMPLATE', pattern));
        assert.ok(performance.now() - before < 20_000);
        assert.equal(await template('{{ messages[0].content }}').render({ messages }), 'hi');
      });
    }

    it('leave the event loop free', async () => {
      let turns = 0;
      const timer = setInterval(() => turns++, 10);
      await template('{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}')
        .render({ messages })
        .catch(() => undefined);
      clearInterval(timer);
      assert.ok(turns > 40, `${turns} turns of a 10 ms timer in a second`);
    });
  });

  it('refuses the characters that it marks with', async () => {
    await assert.rejects(
      template('{{ messages[0].content }}').render({ messages: [user('a\uFDD0b')] }),
      failsWith('INVALID_TEMPLATE', /FDD0/),
    );
  });

  it('refuses messages that hold no data', async () => {
    const messages = [{ role: 'user', content: 'x', run: () => 1 }];
    await assert.rejects(template('{{ messages[0].content }}').render({ messages }), failsWith('INVALID_DATASET', /no data/));
  });

  it("strips as Python does, with its argument and over Python's whitespace", async () => {
    const strip =
      "{{ messages[0].content.strip('\\n') }}|{{ messages[0].content.strip() }}|{{ messages[0].content | trim }}|{{ messages[0].content.lstrip('\\n ') }}";
    const text = await template(strip).render({ messages: [user('\n \uFEFFx\u0085\x1c \n')] });
    assert.equal(text, ' \uFEFFx\u0085\x1c |\uFEFFx|\uFEFFx|\uFEFFx\u0085\x1c \n');
  });
});
