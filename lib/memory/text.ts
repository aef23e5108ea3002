import { withCommas } from '../numbers.ts';
import { bytesText, MEMORY_COMPONENTS, type MemoryComponent, type MemoryPlan } from './plan.ts';

/** A plan for people to read: its figures, whether it fits, and what would make it fit. */
export function planText(plan: MemoryPlan): string {
  const { settings, components, total, device, fits } = plan;
  const rows = Object.entries(MEMORY_COMPONENTS)
    .map(([name, what]): [string, number, string] => [name, components[name as MemoryComponent], what])
    .filter(([, bytes]) => bytes > 0);
  const line = ([name, bytes, what]: [string, number, string]) => `  ${name.padEnd(12)}${bytesText(bytes).padStart(10)}   ${what}`;
  return [
    heading(plan),
    `  base: ${withCommas(settings.parameters)} parameters, ${settings.weights}; trained: ${withCommas(settings.trainableParameters)}`,
    ...(settings.task === 'train'
      ? [
          `  optimizer: ${settings.optim}; gradient checkpointing: ${settings.gradientCheckpointing}; activations in ${settings.computeType}`,
        ]
      : []),
    '',
    ...rows.map(line),
    line(['total', total, `${fits ? 'fits' : 'does not fit'} ${device.name} (${bytesText(device.memory)})`]),
    ...changesText(plan),
    ...plan.notes.map((note) => `\n${note}`),
  ].join('\n');
}

function heading({ settings: { task, batchSize, sequenceLength, tokens } }: MemoryPlan): string {
  const shape = `${batchSize} × ${withCommas(sequenceLength)} tokens`;
  if (task === 'generate') return `Generating ${shape}`;
  const most = tokens < batchSize * sequenceLength ? `, at most ${withCommas(tokens)} together` : '';
  return `${task === 'train' ? 'Training on' : 'Evaluating'} ${shape} at a time${most}`;
}

function changesText({ fits, changes }: MemoryPlan): string[] {
  if (fits) return [];
  if (changes.length === 0) return ['', 'No change of options makes it fit: it takes a smaller model or more memory.'];
  return ['', 'It fits with:', ...changes.map(({ what, total }) => `  ${bytesText(total).padStart(10)}   ${what}`)];
}
