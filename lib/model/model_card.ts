import { basename } from 'node:path';
import type { ResolvedLoraConfig } from '../options/lora_config.ts';

/** README.md of an adapter folder: the front matter that the hub reads, as PEFT writes it, and how to use the adapter. */
export function adapterCard(base: string, config: ResolvedLoraConfig): string {
  const isId = /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(base) && !base.endsWith('.gguf');
  const front = [
    '---',
    ...(isId ? [`base_model: ${base}`] : []),
    'library_name: peft',
    'pipeline_tag: text-generation',
    'tags:',
    ...(isId ? [`- base_model:adapter:${base}`] : []),
    '- lora',
    '- lowrank',
    '---',
  ];
  const name = base === '' ? 'a base model' : `\`${isId ? base : basename(base)}\``;
  return `${front.join('\n')}

# LoRA adapter

Trained with lowrank on ${name}: r = ${config.r}, alpha = ${config.loraAlpha}${config.useRslora ? ', rank-stabilised' : ''}.

From Node.js:

\`\`\`js
import { PeftModel } from 'lowrank';
const model = await PeftModel.fromPretrained('<base model>', '<this folder>');
\`\`\`

From Python:

\`\`\`python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("<base model>"), "<this folder>")
\`\`\`
`;
}
