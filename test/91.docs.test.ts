import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { optionsPage, withTables } from '../scripts/options_tables.ts';

describe('documentation', () => {
  it('lists every option with its default, as the schemas have them (npm run docs)', () => {
    const page = readFileSync(optionsPage, 'utf8');
    assert.match(page, /\| `gradientAccumulationSteps` \| `1` \|/);
    assert.equal(page, withTables(page));
  });
});
