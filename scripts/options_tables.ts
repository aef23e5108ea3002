// Writes the tables of options in docs/training.md from the schemas, which are the one place where options are described.
//   npx tsx scripts/options_tables.ts            (npm run docs; a test holds the file against it)
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { loraConfigSchema } from '../lib/options/lora_config.ts';
import { trainedLayersSchema } from '../lib/options/trained_layers.ts';
import { trainingArgumentsSchema } from '../lib/options/training_arguments.ts';

interface Property {
  default?: unknown;
  description?: string;
}

function table(schema: z.ZodType): string {
  const { properties = {} } = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as { properties?: Record<string, Property> };
  const rows = Object.entries(properties).map(([name, property]) => {
    const value = property.default === undefined ? '' : `\`${JSON.stringify(property.default).replaceAll('"', "'")}\``;
    return `| \`${name}\` | ${value} | ${(property.description ?? '').replaceAll('|', '\\|')} |`;
  });
  return ['| option | default | what |', '| --- | --- | --- |', ...rows].join('\n');
}

/** The page with its tables made anew. */
export function withTables(page: string): string {
  const tables: Record<string, string> = {
    layers: table(trainedLayersSchema),
    args: table(trainingArgumentsSchema),
    peftConfig: table(loraConfigSchema),
  };
  return Object.entries(tables).reduce(
    (text, [name, content]) =>
      text.replace(new RegExp(`(<!-- ${name} -->\n)[^]*?(<!-- /${name} -->)`), (_, open, close) => `${open}${content}\n${close}`),
    page,
  );
}

export const optionsPage = fileURLToPath(new URL('../docs/training.md', import.meta.url));

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(optionsPage, withTables(readFileSync(optionsPage, 'utf8')));
