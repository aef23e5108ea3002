import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CausalLM, getPeftModel, type LoraConfig, type PeftModel } from '../lib/index.ts';
import { compilePythonPattern } from '../lib/model/python_pattern.ts';
import { assertFails, tinyConfig } from './support/tiny_models.ts';

interface Expected {
  modules: Record<string, { r: number; scale: number }>;
  saved: Record<string, number[]>;
  trainable: number;
  total: number;
}

interface Fixture {
  models: Record<string, Record<string, unknown>>;
  cases: { model: string; options: Record<string, unknown>; expected: Expected | { error: string } }[];
}

const fixture = JSON.parse(readFileSync(fileURLToPath(new URL('fixtures/peft_targets/targets.json', import.meta.url)), 'utf8')) as Fixture;

function camelCase(options: Record<string, unknown>): LoraConfig {
  return Object.fromEntries(
    Object.entries(options).map(([key, value]) => [key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()), value]),
  );
}

/** LoRA modules of the adapter 'default' with their rank, from the parameters. */
function ranksOf(model: PeftModel): Record<string, number> {
  const lora = model.core.native.parameters().filter(({ name }) => name.endsWith('.lora_A.default'));
  return Object.fromEntries(lora.map(({ name, shape }) => [name.slice(0, -'.lora_A.default'.length), shape[0] as number]));
}

describe("targets: PEFT's rules", () => {
  for (const { model: name, options, expected } of fixture.cases) {
    const title = `${name} ${JSON.stringify(options)}`;
    if ('error' in expected) {
      it(`${title}: refused, as by PEFT (${expected.error.slice(0, 60)})`, async () => {
        const base = await CausalLM.fromConfig(fixture.models[name] as object);
        await assertFails(() => getPeftModel(base, camelCase(options)), 'INVALID_OPTION', /peftConfig\.targetModules/);
      });
      continue;
    }
    it(title, async () => {
      const base = await CausalLM.fromConfig(fixture.models[name] as object);
      const model = await getPeftModel(base, camelCase(options));
      assert.deepEqual(ranksOf(model), Object.fromEntries(Object.entries(expected.modules).map(([module, { r }]) => [module, r])));
      const trained = model.parameters().filter((parameter) => parameter.requiresGrad);
      assert.deepEqual(Object.fromEntries(trained.map((parameter) => [parameter.name, parameter.shape])), expected.saved);
      assert.deepEqual(model.countParameters(), { trainable: expected.trainable, all: expected.total });
    });
  }
});

describe('targets: what means nothing is an error that names it and the nearest modules', () => {
  let base: CausalLM;
  beforeEach(async () => {
    base = await CausalLM.fromConfig(tinyConfig());
  });

  const wrong: [string, LoraConfig, RegExp, RegExp][] = [
    [
      'a misspelt module beside a right one',
      { targetModules: ['q_proj', 'v_porj'] },
      /peftConfig\.targetModules: found "v_porj"/,
      /nearest are v_proj/,
    ],
    ['an expression', { targetModules: '.*\\.query' }, /targetModules: found "\.\*\\\\\.query"/, /matches no module/],
    ['a layer that is not there', { targetModules: ['q_proj'], layersToTransform: [3] }, /layersToTransform \[3\]/, /matches no module/],
    ['a pattern of ranks', { targetModules: ['q_proj'], rankPattern: { v_proj: 4 } }, /peftConfig\.rankPattern: found "v_proj"/, /q_proj/],
    [
      'a pattern of alphas',
      { targetModules: ['q_proj'], alphaPattern: { 'layers.9.*': 4 } },
      /peftConfig\.alphaPattern: found "layers\.9/,
      /matches no module/,
    ],
    [
      'an excluded module',
      { targetModules: ['q_proj'], excludeModules: ['k_porj'] },
      /peftConfig\.excludeModules: found \["k_porj"\]/,
      /k_proj/,
    ],
    [
      'a module to save',
      { targetModules: ['q_proj'], modulesToSave: ['lm_haed'] },
      /peftConfig\.modulesToSave: found "lm_haed"/,
      /lm_head/,
    ],
    ['the head', { targetModules: ['lm_head'] }, /lm_head, a module of kind 'head'/, /modulesToSave/],
    ['the embedding', { targetModules: ['q_proj', 'embed_tokens'] }, /model\.embed_tokens, a module of kind 'embedding'/, /modulesToSave/],
    ['a norm', { targetModules: ['norm'] }, /model\.norm, a module of kind 'norm'/, /modulesToSave/],
    ['a whole block', { targetModules: ['mlp'] }, /model\.layers\.0\.mlp, a module without weights/, /linear layers/],
    ['an expression that is not one', { targetModules: '(q_proj' }, /targetModules: found the regular expression "\(q_proj"/, /missing/],
    ['lookahead', { targetModules: '(?!.*k_proj).*_proj' }, /lookahead/, /targetModules/],
    ['a backreference', { targetModules: '(q)_\\1' }, /backreferences/, /targetModules/],
    ['an escape that Python lacks', { targetModules: '\\Qq_proj\\E' }, /no meaning in Python/, /targetModules/],
    [
      'a bad expression in a pattern',
      { targetModules: ['q_proj'], rankPattern: { '[': 2 } },
      /peftConfig\.rankPattern/,
      /regular expression/,
    ],
  ];
  for (const [what, config, ...patterns] of wrong) {
    it(what, () => assertFails(() => getPeftModel(base, config), 'INVALID_OPTION', ...patterns));
  }

  it('leaves nothing on the base when it fails', async () => {
    const count = base.parameters().length;
    await assertFails(() => getPeftModel(base, { targetModules: ['nothing'] }), 'INVALID_OPTION');
    assert.equal(base.parameters().length, count);
    await getPeftModel(base, { targetModules: ['q_proj'] });
  });

  it('refuses expressions and lists of patterns that no model needs', async () => {
    await assertFails(() => getPeftModel(base, { targetModules: 'q'.repeat(1e6) }), 'INVALID_OPTION', /1000000 characters/);
    await assertFails(() => getPeftModel(base, { targetModules: '('.repeat(9000) }), 'INVALID_OPTION', /targetModules/);
    const rankPattern = Object.fromEntries(Array.from({ length: 1e5 }, (_, i) => [`x${i}`, 2]));
    await assertFails(() => getPeftModel(base, { targetModules: ['q_proj'], rankPattern }), 'INVALID_OPTION', /100000 patterns/);
  });

  it('matches an evil expression in linear time', async () => {
    const started = performance.now();
    await assertFails(() => getPeftModel(base, { targetModules: '(.*.*)*(.*.*)*(.*.*)*x' }), 'INVALID_OPTION', /matches no module/);
    assert.ok(performance.now() - started < 2000);
  });
});

describe("Python's regular expressions", () => {
  it('match the whole text or its beginning', () => {
    assert.ok(compilePythonPattern('a|ab', 'x').matchesAll('ab'));
    assert.ok(!compilePythonPattern('a', 'x').matchesAll('ab'));
    assert.deepEqual({ ...compilePythonPattern('(?P<n>\\d+)-', 'x').matchStart('12-b') }, { n: '12' });
    assert.equal(compilePythonPattern('b', 'x').matchStart('ab'), undefined);
    assert.ok(compilePythonPattern('a\\Z', 'x').matchesAll('a'));
    assert.ok(compilePythonPattern('a\\\\Q', 'x').matchesAll('a\\Q'));
  });
});
